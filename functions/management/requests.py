"""Base models of the management API's requests."""

from pydantic import BaseModel, ConfigDict

from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.paging import Cursor
from functions.domain.values import Limit


class Request(BaseModel):
    """Base of all requests. An unknown field is an error; no error repeats a value."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TenantRequest(Request):
    """A request about one tenant."""

    tenant_id: TenantId


class DeviceRequest(TenantRequest):
    """A request about one device."""

    device_id: DeviceId


class ListRequest(Request):
    """A request for a page of a list."""

    limit: Limit = 100
    cursor: Cursor | None = None
