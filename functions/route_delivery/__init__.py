"""Delivers route jobs: a module for each type of destination, one contract for all.

The names here are what the module of a route type imports, in this package or in any other folder:

    from functions.route_delivery import Job, Receipt, deliverer

    class Destination(BaseModel): ...

    async def send(job: Job, destination: Destination, ctx: Context) -> Receipt: ...

    deliver, start, stop = deliverer("slack", Destination, send)
"""

from functions.domain.destination_annotations import Format, Generated, StoredOnly
from functions.outbound.receipt import Receipt
from functions.outbound.settings import DeliverySettings
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.destinations import EndpointKey
from functions.route_delivery.job import Job, without_device_secret
from functions.route_delivery.templates import TemplateText, render

__all__ = [
    "DeliverySettings",
    "EndpointKey",
    "Format",
    "Generated",
    "Job",
    "Receipt",
    "StoredOnly",
    "TemplateText",
    "deliverer",
    "render",
    "without_device_secret",
]
