"""What is to be delivered: the job that ingest makes, and the older form with its route inline."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.identifiers import TenantId

# No dots: the id is part of what a webhook's signature covers, joined with dots.
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,255}$")]
RouteId = Annotated[
    str, Field(coerce_numbers_to_str=True), StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")
]

_DEVICE_SECRET = "provision_token"  # noqa: S105 - a key's name


class Job(BaseModel):
    """One message for one route. It names the route and carries nothing of its configuration.

    `stored_at` is when the device's message was stored, so it is the same on every attempt.
    """

    # NaN stays NaN on the way, as turning it into null would be a change that nobody sees.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    job_id: JobId
    route_id: RouteId
    tenant_id: TenantId
    device_id: str = ""
    topic: str
    msg_type: str = ""
    payload: Any
    stored_at: AwareDatetime


class InlineRoute(BaseModel):
    """The one thing that is taken from a route sent inline; whatever else it holds is ignored."""

    model_config = ConfigDict(frozen=True)

    id: RouteId


class SeedJob(BaseModel):
    """The two-token form on `routes.{tenant_id}`."""

    model_config = ConfigDict(frozen=True)

    route: InlineRoute
    tenant_id: TenantId
    topic: str
    payload: Any


def without_device_secret(payload: Any) -> Any:  # noqa: ANN401 - whatever a device sends
    """The payload without the token by which its device proves itself: no receiver needs that."""
    if isinstance(payload, dict) and _DEVICE_SECRET in payload:
        return {name: value for name, value in payload.items() if name != _DEVICE_SECRET}
    return payload


def route_key(route_id: str) -> UUID | None:
    """The database's key of the route; None when the id cannot be one."""
    try:
        return UUID(route_id)
    except ValueError:
        return None
