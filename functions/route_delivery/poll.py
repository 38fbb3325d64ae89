"""Keeps jobs in a stream, from which a receiver that cannot be reached reads them over HTTP.

The stream keeps the newest jobs of each route, up to its limits in number and age. A tenant's bytes
are bounded here: the server bounds them for the whole stream only.
"""

from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from functions.domain.destination_annotations import Format, Generated, StoredOnly
from functions.domain.named_sql import read_queries
from functions.outbound.endpoint import PreviousSecret
from functions.outbound.receipt import Receipt
from functions.outbound.settings import DeliverySettings
from functions.route_delivery.bodies import encode_event
from functions.route_delivery.deliverer import deliverer
from functions.route_delivery.job import Job
from runtime import Context

MAX_BODY_BYTES = 65_536
_QUERIES = read_queries(Path(__file__).with_name("poll.sql"))
_FULL_WAIT_S = 3600.0


class PollSettings(DeliverySettings):
    """Settings of routes that are polled.

    Attributes:
        bytes_per_tenant: the most bytes of one tenant in a week, the time that the stream keeps.
    """

    bytes_per_tenant: Annotated[int, Field(ge=100_000)] = 200_000_000


# The name under which the host looks for a function's settings.
Settings = PollSettings


class PollDestination(BaseModel):
    """The `destination_config` of a route of type `poll`.

    Attributes:
        secret: the bearer token of its readers.
        previous_secrets: tokens that are taken too, each until its time.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    secret: Annotated[
        SecretStr,
        Generated("webhook-secret", rotates_to="previous_secrets"),
        Format("webhook-secret"),
    ]
    previous_secrets: Annotated[tuple[PreviousSecret, ...], StoredOnly()] = ()


async def send(job: Job, destination: PollDestination, ctx: Context) -> Receipt:
    """Store one job in the stream."""
    try:
        body = encode_event(job)
    except ValueError:
        reason = "the payload cannot be written as JSON"
        return Receipt("refused", "PAYLOAD_NOT_JSON", reason, health="unknown")
    if len(body) > MAX_BODY_BYTES:
        reason = f"the message has more than {MAX_BODY_BYTES} bytes"
        return Receipt("refused", "PAYLOAD_TOO_LARGE", reason, health="unknown")
    settings: PollSettings = ctx.settings if ctx.settings is not None else PollSettings()
    within = await ctx.postgres.fetchval(
        _QUERIES["take_bytes"],
        *(job.tenant_id, date.today(), len(body), settings.bytes_per_tenant),  # noqa: DTZ011 - a bound of a week
    )
    if within is None:
        reason = "the tenant's jobs that wait for readers have as many bytes as they may have"
        return Receipt("failed", "POLL_FULL", reason, retry_after_s=_FULL_WAIT_S, health="unknown")
    await ctx.publish(f"polled.{job.tenant_id}.{job.route_id}", body, msg_id=job.job_id)
    return Receipt("delivered")


deliver, start, stop = deliverer("poll", PollDestination, send)
