"""Endpoints of the management API for device shadows."""

from datetime import datetime
from typing import Annotated, Any

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.values import NO_NUL, JsonObject
from functions.shadow import store
from functions.shadow.changes import ChangeRefused, Update, apply_update, send_delta
from runtime import Context, Event, Reject

_STATUS = {"VERSION_CONFLICT": 409, "SHADOW_INVALID": 422, "SHADOW_TOO_LARGE": 413}


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ShadowQuery(_Request):
    """A request about one device's shadow."""

    tenant_id: TenantId
    device_id: DeviceId


class DesiredState(_Request):
    """The state that the device shall reach; null deletes the section."""

    desired: JsonObject | None


class UpdateDesired(ShadowQuery):
    """A change of the desired state; with `version`, only if the shadow still has that version."""

    state: DesiredState
    version: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    client_token: Annotated[str, StringConstraints(max_length=64, pattern=NO_NUL)] | None = None


class ShadowState(BaseModel):
    """The sections, and the delta: the part of `desired` that the device has not reported yet."""

    desired: dict[str, Any]
    reported: dict[str, Any]
    delta: dict[str, Any]


class ShadowMetadata(BaseModel):
    """The time at which each value was written, in seconds since 1970."""

    desired: dict[str, Any]
    reported: dict[str, Any]


class ShadowDocument(BaseModel):
    """A shadow."""

    tenant_id: str
    device_id: str
    state: ShadowState
    metadata: ShadowMetadata
    version: int
    updated_at: datetime | None
    client_token: str | None = None


class DeletedShadow(BaseModel):
    """A deleted shadow's version; a new shadow continues to count from it."""

    tenant_id: str
    device_id: str
    version: int


async def get_shadow(event: Event[ShadowQuery], ctx: Context) -> ShadowDocument:
    """A device's shadow."""
    query = event.data
    async with ctx.postgres.acquire() as connection:
        shadow = await store.read(connection, query.tenant_id, query.device_id)
        if shadow is None and not await store.is_registered(
            connection, query.tenant_id, query.device_id
        ):
            raise _device_not_found()
    if shadow is None or shadow.deleted:
        raise _shadow_not_found()
    return _document(shadow)


async def update_desired(event: Event[UpdateDesired], ctx: Context) -> ShadowDocument:
    """Change the desired state, and send the device its delta."""
    wanted = event.data
    update = Update(wanted.state.model_dump(), wanted.version, wanted.client_token)
    try:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            shadow = await store.lock(connection, wanted.tenant_id, wanted.device_id)
            apply_update(shadow, update, shadow.stamp_now)
            await store.save(connection, shadow)
    except asyncpg.ForeignKeyViolationError:
        raise _device_not_found() from None
    except ChangeRefused as refused:
        raise Reject(refused.code, refused.reason, status=_STATUS[refused.code]) from None
    await send_delta(ctx, shadow, wanted.client_token)
    return _document(shadow, wanted.client_token)


async def delete_shadow(event: Event[ShadowQuery], ctx: Context) -> DeletedShadow:
    """Delete a shadow. Its version is kept, and earlier reports that arrive late have no effect."""
    query = event.data
    try:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            shadow = await store.lock(connection, query.tenant_id, query.device_id)
            if shadow.deleted:
                raise _shadow_not_found()
            apply_update(shadow, Update({"desired": None, "reported": None}), shadow.stamp_now)
            shadow.deleted = True
            await store.save(connection, shadow)
    except asyncpg.ForeignKeyViolationError:
        raise _device_not_found() from None
    return DeletedShadow(
        tenant_id=shadow.tenant_id, device_id=shadow.device_id, version=shadow.version
    )


def _document(shadow: store.Shadow, client_token: str | None = None) -> ShadowDocument:
    return ShadowDocument(
        tenant_id=shadow.tenant_id,
        device_id=shadow.device_id,
        state=ShadowState(
            desired=shadow.desired.state(), reported=shadow.reported.state(), delta=shadow.delta()
        ),
        metadata=ShadowMetadata(
            desired=shadow.desired.metadata(), reported=shadow.reported.metadata()
        ),
        version=shadow.version,
        updated_at=shadow.updated_at,
        client_token=client_token,
    )


def _device_not_found() -> Reject:
    return Reject("DEVICE_NOT_FOUND", "The tenant has no such device.", status=404)


def _shadow_not_found() -> Reject:
    return Reject("SHADOW_NOT_FOUND", "The device has no shadow.", status=404)
