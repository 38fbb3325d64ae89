"""Endpoints for devices: register, get, list, revoke, reactivate, rotate the token, delete."""

import hmac
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

import asyncpg
import orjson
from pydantic import BaseModel, Field

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_text, cut, read_cursor
from functions.domain.quarantine import Executor
from functions.domain.values import JsonObject, Name
from functions.management.device_tokens import (
    DeviceSettings,
    Token,
    choose_token,
    hash_token,
)
from functions.management.requests import DeviceRequest, ListRequest, TenantRequest
from functions.management.tenants import tenant_being_erased, tenant_not_found
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("devices.sql"))
_AT_A_TIME = 5_000

DeviceStatus = Literal["ACTIVE", "REVOKED"]
Presence = Literal["online", "offline", "never_seen"]

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


# The name under which the host looks for a function's settings.
Settings = DeviceSettings


class RegisterDevice(DeviceRequest):
    """A new device. A token is generated when absent.

    Without `subscription_id` the tenant's subscriptions count that are no ADDON.
    """

    site_id: Name
    provision_token: Token | None = None
    metadata: JsonObject = Field(default_factory=dict)
    subscription_id: UUID | None = None
    sensor_limit: Annotated[int, Field(ge=0, le=10_000)] = 20


class RotateToken(DeviceRequest):
    """A request for a new token; the old one counts for `overlap_s` seconds more, at most a week.

    Of several replaced tokens only the last one counts.
    """

    provision_token: Token | None = None
    overlap_s: Annotated[int, Field(ge=0, le=604_800)] = 0


class ListDevices(ListRequest, TenantRequest):
    """A request for a tenant's devices: all, or only those of one status or presence."""

    status: DeviceStatus | None = None
    presence: Presence | None = None


class Device(BaseModel):
    """A registered device.

    Attributes:
        previous_token_until: until when a replaced token counts, or counted; null: none ever did.
    """

    tenant_id: str
    device_id: str
    site_id: str
    status: DeviceStatus
    metadata: dict[str, Any]
    subscription_id: UUID | None
    sensor_limit: int
    previous_token_until: datetime | None
    created_at: datetime
    updated_at: datetime


class DeletedDevice(BaseModel):
    """A device that is no longer registered."""

    tenant_id: str
    device_id: str


class ListedDevice(Device):
    """A device and its presence.

    Attributes:
        presence: `never_seen` while the device has neither connected nor sent anything.
        presence_since: when it became so.
        last_seen_at: its last message, or the beginning or end of its last session.
    """

    presence: Presence
    presence_since: datetime | None
    last_seen_at: datetime | None


class DeviceWithToken(Device):
    """A device and its token in clear; no other answer shows the token."""

    provision_token: str


def device_not_found() -> Reject:
    """The error for a device that is not registered."""
    return Reject("DEVICE_NOT_FOUND", "The tenant has no such device.", status=404)


async def register_device(event: Event[RegisterDevice], ctx: Context) -> DeviceWithToken:
    """Register a device. A repeat of the request with the same explicit token is not an error."""
    wanted = event.data
    token = choose_token(wanted.provision_token, ctx.settings)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        await lock_tenant(connection, wanted.tenant_id)
        row = await find_device(connection, wanted.tenant_id, wanted.device_id)
        if row is None:
            row = await insert_device(connection, wanted, token)
        elif not _is_same(row, wanted, token):
            raise Reject("DEVICE_EXISTS", "The device is registered with other data.", status=409)
    return _with_token(row, token)


async def get_device(event: Event[DeviceRequest], ctx: Context) -> ListedDevice:
    """One device."""
    row = await ctx.postgres.fetchrow(_QUERIES["show"], event.data.tenant_id, event.data.device_id)
    if row is None:
        raise device_not_found()
    return _listed(row)


async def list_devices(event: Event[ListDevices], ctx: Context) -> Page[ListedDevice]:
    """A tenant's devices in the order of their ids."""
    query = event.data
    (after,) = read_cursor(query.cursor, as_text)
    rows = await ctx.postgres.fetch(
        _QUERIES["page"], query.tenant_id, query.status, after, query.limit + 1, query.presence
    )
    return cut([_listed(row) for row in rows], query.limit, lambda device: (device.device_id,))


async def revoke_device(event: Event[DeviceRequest], ctx: Context) -> Device:
    """Refuse the device's messages from now on; revoking it again is not an error."""
    row = await ctx.postgres.fetchrow(
        _QUERIES["set_status"], event.data.tenant_id, event.data.device_id, "REVOKED"
    )
    if row is None:
        raise device_not_found()
    return _device(row)


async def reactivate_device(event: Event[DeviceRequest], ctx: Context) -> Device:
    """Accept the device again, if its subscription has room."""
    device = (event.data.tenant_id, event.data.device_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        await lock_tenant(connection, event.data.tenant_id)
        row = await find_device(connection, *device)
        if row is None:
            raise device_not_found()
        if row["status"] != "ACTIVE":
            await _check_room(connection, event.data.tenant_id, row["subscription_id"])
            row = await connection.fetchrow(_QUERIES["set_status"], *device, "ACTIVE")
    return _device(row)


async def rotate_token(event: Event[RotateToken], ctx: Context) -> DeviceWithToken:
    """Replace a device's token."""
    wanted = event.data
    token = choose_token(wanted.provision_token, ctx.settings)
    row = await replace_token(
        ctx.postgres, wanted.tenant_id, wanted.device_id, token, wanted.overlap_s
    )
    if row is None:
        raise device_not_found()
    return _with_token(row, token)


async def delete_device(event: Event[DeviceRequest], ctx: Context) -> DeletedDevice:
    """Forget a device with its certificates, sensors, shadow and commands; its telemetry stays.

    The device is revoked first, and what can be much is deleted in parts. A request that ends in
    the middle can be repeated.
    """
    device = (event.data.tenant_id, event.data.device_id)
    if await ctx.postgres.fetchrow(_QUERIES["set_status"], *device, "REVOKED") is None:
        raise device_not_found()
    deleted = _AT_A_TIME
    while deleted == _AT_A_TIME:
        deleted = await ctx.postgres.fetchval(_QUERIES["delete_commands"], *device, _AT_A_TIME)
    await ctx.postgres.execute(_QUERIES["delete"], *device)
    return DeletedDevice(tenant_id=device[0], device_id=device[1])


async def lock_tenant(connection: Connection, tenant_id: str) -> None:
    """Serialize with other changes of the number of a tenant's devices, until the transaction ends.

    Raises:
        Reject: `TENANT_NOT_FOUND`, or `TENANT_BEING_ERASED`.
    """
    status = await connection.fetchval(_QUERIES["lock_tenant"], tenant_id)
    if status is None:
        raise tenant_not_found()
    if status == "ERASING":
        raise tenant_being_erased()


async def _check_room(connection: Connection, tenant_id: str, subscription: UUID | None) -> None:
    room = await find_room(connection, tenant_id, subscription)
    if room is not None and room <= 0:
        raise Reject("DEVICE_LIMIT_REACHED", "The subscription has no room left.", status=409)


async def find_room(
    connection: Connection, tenant_id: str, subscription: UUID | None
) -> int | None:
    """How many devices more a subscription has room for, below 1 for none; None without a limit.

    Without `subscription` those of the tenant count that are no ADDON.
    """
    room: int | None = await connection.fetchval(_QUERIES["room"], tenant_id, subscription)
    return room


async def find_device(
    connection: Executor, tenant_id: str, device_id: str
) -> asyncpg.Record | None:
    """The device's row; None when it is not registered."""
    return await connection.fetchrow(_QUERIES["find"], tenant_id, device_id)


async def replace_token(
    connection: Executor, tenant_id: str, device_id: str, token: str, overlap_s: int = 0
) -> asyncpg.Record | None:
    """Give a device another token; its row, None when it is not registered.

    Args:
        connection: the pool or a connection.
        tenant_id: the tenant.
        device_id: the device.
        token: the new token.
        overlap_s: how long the present token counts beside it.
    """
    return await connection.fetchrow(
        *(_QUERIES["set_token"], tenant_id, device_id, hash_token(token)),
        timedelta(seconds=overlap_s),
    )


async def insert_device(
    connection: Connection, wanted: RegisterDevice, token: str
) -> asyncpg.Record | None:
    """Register a device that is not registered; its tenant is locked.

    Raises:
        Reject: `DEVICE_LIMIT_REACHED`, or `SUBSCRIPTION_NOT_FOUND`.
    """
    await _check_room(connection, wanted.tenant_id, wanted.subscription_id)
    try:
        return await connection.fetchrow(
            _QUERIES["insert"],
            wanted.tenant_id,
            wanted.device_id,
            wanted.site_id,
            hash_token(token),
            json.dumps(wanted.metadata),
            wanted.subscription_id,
            wanted.sensor_limit,
        )
    except asyncpg.ForeignKeyViolationError:
        raise Reject(
            "SUBSCRIPTION_NOT_FOUND", "The tenant has no such subscription.", status=404
        ) from None


def _is_same(row: asyncpg.Record, wanted: RegisterDevice, token: str) -> bool:
    return hmac.compare_digest(row["provision_token_hash"] or b"", hash_token(token)) and (
        row["site_id"],
        orjson.loads(row["metadata"]),
        row["subscription_id"],
        row["sensor_limit"],
    ) == (wanted.site_id, wanted.metadata, wanted.subscription_id, wanted.sensor_limit)


def _device(row: Any) -> Device:  # noqa: ANN401 - a row, whose columns the model checks
    return Device.model_validate({**row, "metadata": orjson.loads(row["metadata"])})


def _listed(row: Any) -> ListedDevice:  # noqa: ANN401 - likewise
    return ListedDevice.model_validate({**row, "metadata": orjson.loads(row["metadata"])})


def _with_token(row: Any, token: str) -> DeviceWithToken:  # noqa: ANN401 - likewise
    return DeviceWithToken(**_device(row).model_dump(), provision_token=token)
