"""Types for tenant and device ids in request models, by the rules of `topics`; job ids."""

from typing import Annotated

from pydantic import StringConstraints

TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
DeviceId = Annotated[
    str, StringConstraints(pattern=r"^\.*[A-Za-z0-9_:-][A-Za-z0-9_.:-]*$", max_length=128)
]


def job_id(origin: str, route_id: str) -> str:
    """The id of the job that a stored message makes for a route; the same on every delivery.

    Args:
        origin: the message's `Message.origin`.
        route_id: the route's id.
    """
    return f"{origin}-{route_id}"


__all__ = ["DeviceId", "TenantId", "job_id"]
