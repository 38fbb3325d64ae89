"""The ids of tenants and devices as types for request models, with the same rules as `topics`."""

from typing import Annotated

from pydantic import StringConstraints

TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
DeviceId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]

__all__ = ["DeviceId", "TenantId"]
