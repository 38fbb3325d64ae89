"""The question for a device's shadow, which doors and the management API ask."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

from functions.domain.identifiers import DeviceId, TenantId

SUBJECT = "management.shadows.get"
"""The endpoint's subject."""

ShadowName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_:-]{0,64}$")]


class ShadowQuery(BaseModel):
    """A request about one shadow of a device; without a name, the one that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId
    name: ShadowName = ""


__all__ = ["SUBJECT", "ShadowName", "ShadowQuery"]
