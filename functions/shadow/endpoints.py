"""Endpoints of the management API for device shadows."""

import time
from datetime import datetime
from typing import Annotated, Any
from uuid import uuid4

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from functions.domain.downlinks import add_downlinks
from functions.domain.identifiers import DeviceId, TenantId
from functions.domain.shadows import ShadowQuery
from functions.domain.values import NO_NUL, JsonObject
from functions.shadow import store
from functions.shadow.answers import Cause, as_downlinks
from functions.shadow.changes import delete_shadow as delete_stored
from functions.shadow.changes import update_shadow
from functions.shadow.shadow import ChangeRefused, Shadow, ShadowKey, Update
from runtime import Context, Event, Reject

_STATUS = {
    "VERSION_CONFLICT": 409,
    "TOO_MANY_SHADOWS": 409,
    "SHADOW_INVALID": 422,
    "SHADOW_TOO_LARGE": 413,
}


class ShadowEndpointSettings(BaseModel):
    """Settings of the endpoints that make shadows.

    Attributes:
        max_named: shadows with a name that a device may have; a deleted one counts until it is
            forgotten.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_named: Annotated[int, Field(ge=0, le=1000)] = 10


# The name under which the host looks for a function's settings.
Settings = ShadowEndpointSettings


class ShadowsQuery(BaseModel):
    """A request about one device's shadows."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    device_id: DeviceId


class DesiredState(BaseModel):
    """The state that the device shall reach; null deletes the section."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

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
    name: str
    state: ShadowState
    metadata: ShadowMetadata
    version: int
    updated_at: datetime | None
    client_token: str | None = None


class DeletedShadow(BaseModel):
    """A deleted shadow's version; a new shadow continues to count from it."""

    tenant_id: str
    device_id: str
    name: str
    version: int


class ListedShadow(BaseModel):
    """A shadow without its document; the name is empty for the one that has none."""

    name: str
    version: int
    updated_at: datetime


class ListedShadows(BaseModel):
    """All shadows of a device."""

    items: list[ListedShadow]


async def get_shadow(event: Event[ShadowQuery], ctx: Context) -> ShadowDocument:
    """A device's shadow."""
    key = _key(event.data)
    async with ctx.postgres.acquire() as connection:
        shadow = await store.read(connection, key)
        if shadow is None and not await store.is_registered(
            connection, key.tenant_id, key.device_id
        ):
            raise _device_not_found()
    if shadow is None or shadow.deleted:
        raise _shadow_not_found()
    return _document(shadow)


async def list_shadows(event: Event[ShadowsQuery], ctx: Context) -> ListedShadows:
    """A device's shadows, the one without a name first."""
    device = (event.data.tenant_id, event.data.device_id)
    async with ctx.postgres.acquire() as connection:
        found = await store.read_all(connection, *device)
        if not found and not await store.is_registered(connection, *device):
            raise _device_not_found()
    return ListedShadows(items=[ListedShadow(**each._asdict()) for each in found])


async def update_desired(event: Event[UpdateDesired], ctx: Context) -> ShadowDocument:
    """Change the desired state, and send the device what is different now."""
    wanted = event.data
    key = _key(wanted)
    update = Update(wanted.state.model_dump(), wanted.version, wanted.client_token)
    cause = _cause(wanted.client_token)
    try:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            shadow = await store.lock_or_make(connection, key, ctx.settings.max_named)
            answers = await update_shadow(connection, shadow, update, Shadow.stamp_call, cause)
            await add_downlinks(connection, as_downlinks(key, answers, cause))
    except asyncpg.ForeignKeyViolationError:
        raise _device_not_found() from None
    except ChangeRefused as refused:
        raise Reject(refused.code, refused.reason, status=_STATUS[refused.code]) from None
    return _document(shadow, wanted.client_token)


async def delete_shadow(event: Event[ShadowQuery], ctx: Context) -> DeletedShadow:
    """Delete a shadow. Its version is kept, and earlier reports that arrive late have no effect."""
    key, cause = _key(event.data), _cause(None)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        shadow = await store.lock(connection, key)
        if shadow is None or shadow.deleted:
            if await store.is_registered(connection, key.tenant_id, key.device_id):
                raise _shadow_not_found()
            raise _device_not_found()
        answer = await delete_stored(connection, shadow, None, Shadow.stamp_call, cause)
        await add_downlinks(connection, as_downlinks(key, [answer], cause))
    return DeletedShadow(**key._asdict(), version=shadow.version)


def _key(query: ShadowQuery) -> ShadowKey:
    return ShadowKey(query.tenant_id, query.device_id, query.name)


def _cause(client_token: str | None) -> Cause:
    return Cause(f"api-{uuid4().hex}", int(time.time()), client_token)


def _document(shadow: Shadow, client_token: str | None = None) -> ShadowDocument:
    return ShadowDocument(
        **shadow.key._asdict(),
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
    return Reject("SHADOW_NOT_FOUND", "The device has no such shadow.", status=404)
