"""Models of a delivery job: the form that ingest makes, and the older form with an inline route."""

from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from functions.domain.event_bodies import event_type
from functions.domain.identifiers import TenantId

# No dots: a webhook's signature covers the id, joined with other parts by dots.
JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,255}$")]
RouteId = Annotated[
    str, Field(coerce_numbers_to_str=True), StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")
]

_DEVICE_SECRET = "provision_token"  # noqa: S105 - a key's name


class Job(BaseModel):
    """One message for one route. The job holds the route's id, not its configuration.

    Attributes:
        stored_at: when the device's message was stored, so it is the same on every attempt.
        is_test: the job tests its route. It is tried once, at once, whatever the route's state.
        is_whole: the payload, as the route's transformation has made it, is all that is sent; no
            message carries it.
    """

    # Serialize NaN as NaN: null would be a silent change of the payload.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    job_id: JobId
    route_id: RouteId
    tenant_id: TenantId
    device_id: str = ""
    topic: str
    msg_type: str = ""
    payload: Any
    stored_at: AwareDatetime
    is_test: bool = False
    is_whole: Annotated[bool, BeforeValidator(lambda _: False)] = Field(default=False, exclude=True)

    @property
    def event_type(self) -> str:
        """The type that receivers see: `device.telemetry`, `notice.endpoint_disabled`, `test`."""
        if self.is_test:
            return "test"
        return event_type(self.topic, self.msg_type)


class InlineRoute(BaseModel):
    """The id of an inline route; every other field of the route is ignored."""

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
    """The payload without the device's provision token, which no receiver needs."""
    if isinstance(payload, dict) and _DEVICE_SECRET in payload:
        return {name: value for name, value in payload.items() if name != _DEVICE_SECRET}
    return payload


@lru_cache(maxsize=10_000)
def route_key(route_id: str) -> UUID | None:
    """The route's key in the database; None when the id is not a UUID."""
    try:
        return UUID(route_id)
    except ValueError:
        return None
