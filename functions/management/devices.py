"""Endpoints for devices: register, get, list, revoke, reactivate, rotate the provision token."""

import hashlib
import hmac
import json
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

import asyncpg
import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_text, cut, read_cursor
from functions.domain.values import JsonObject, Name
from functions.management.requests import DeviceRequest, ListRequest, TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("devices.sql"))
_TOKEN_BYTES = 24
_TOKEN = re.compile(r"[\x21-\x7e]{1,256}")

DeviceStatus = Literal["ACTIVE", "REVOKED"]

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


def _check_token(token: SecretStr) -> SecretStr:
    if not _TOKEN.fullmatch(token.get_secret_value()):
        raise ValueError("a token has 1 to 256 visible ASCII characters, as a header must carry it")
    return token


Token = Annotated[SecretStr, AfterValidator(_check_token)]


class DeviceSettings(BaseModel):
    """How long a token must be that is not generated: short ones can be guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_token_length: Annotated[int, Field(ge=1, le=256)] = 16


# The name under which the host looks for a function's settings.
Settings = DeviceSettings


class RegisterDevice(DeviceRequest):
    """A new device. A token is generated when absent; without `subscription_id` MAIN counts."""

    site_id: Name
    provision_token: Token | None = None
    metadata: JsonObject = Field(default_factory=dict)
    subscription_id: UUID | None = None
    sensor_limit: Annotated[int, Field(ge=0, le=10_000)] = 20


class RotateToken(DeviceRequest):
    """A request for a new token; the old token is refused from now on."""

    provision_token: Token | None = None


class ListDevices(ListRequest, TenantRequest):
    """A request for a tenant's devices: all, or only those of one status."""

    status: DeviceStatus | None = None


class Device(BaseModel):
    """A registered device."""

    tenant_id: str
    device_id: str
    site_id: str
    status: DeviceStatus
    metadata: dict[str, Any]
    subscription_id: UUID | None
    sensor_limit: int
    created_at: datetime
    updated_at: datetime


class DeviceWithToken(Device):
    """A device and its token in clear; no other answer shows the token."""

    provision_token: str


def device_not_found() -> Reject:
    """The error for a device that is not registered."""
    return Reject("DEVICE_NOT_FOUND", "The tenant has no such device.", status=404)


async def register_device(event: Event[RegisterDevice], ctx: Context) -> DeviceWithToken:
    """Register a device. A repeat of the request with the same explicit token is not an error."""
    wanted = event.data
    token = _token(wanted.provision_token, ctx)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        if await connection.fetchval(_QUERIES["lock_tenant"], wanted.tenant_id) is None:
            raise Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404)
        row = await connection.fetchrow(_QUERIES["find"], wanted.tenant_id, wanted.device_id)
        if row is None:
            await _check_room(connection, wanted.tenant_id, wanted.subscription_id)
            row = await _insert(connection, wanted, token)
        elif not _is_same(row, wanted, token):
            raise Reject("DEVICE_EXISTS", "The device is registered with other data.", status=409)
    return _with_token(row, token)


async def get_device(event: Event[DeviceRequest], ctx: Context) -> Device:
    """One device."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.tenant_id, event.data.device_id)
    if row is None:
        raise device_not_found()
    return _device(row)


async def list_devices(event: Event[ListDevices], ctx: Context) -> Page[Device]:
    """A tenant's devices in the order of their ids."""
    query = event.data
    (after,) = read_cursor(query.cursor, as_text)
    rows = await ctx.postgres.fetch(
        _QUERIES["page"], query.tenant_id, query.status, after, query.limit + 1
    )
    return cut([_device(row) for row in rows], query.limit, lambda device: (device.device_id,))


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
        await connection.execute(_QUERIES["lock_tenant"], event.data.tenant_id)
        row = await connection.fetchrow(_QUERIES["find"], *device)
        if row is None:
            raise device_not_found()
        if row["status"] != "ACTIVE":
            await _check_room(connection, event.data.tenant_id, row["subscription_id"])
            row = await connection.fetchrow(_QUERIES["set_status"], *device, "ACTIVE")
    return _device(row)


async def rotate_token(event: Event[RotateToken], ctx: Context) -> DeviceWithToken:
    """Replace a device's token."""
    token = _token(event.data.provision_token, ctx)
    row = await ctx.postgres.fetchrow(
        _QUERIES["set_token"], event.data.tenant_id, event.data.device_id, _hash(token)
    )
    if row is None:
        raise device_not_found()
    return _with_token(row, token)


async def _check_room(connection: Connection, tenant_id: str, subscription: UUID | None) -> None:
    if await connection.fetchval(_QUERIES["has_room"], tenant_id, subscription) is False:
        raise Reject("DEVICE_LIMIT_REACHED", "The subscription has no room left.", status=409)


async def _insert(
    connection: Connection, wanted: RegisterDevice, token: str
) -> asyncpg.Record | None:
    try:
        return await connection.fetchrow(
            _QUERIES["insert"],
            wanted.tenant_id,
            wanted.device_id,
            wanted.site_id,
            _hash(token),
            json.dumps(wanted.metadata),
            wanted.subscription_id,
            wanted.sensor_limit,
        )
    except asyncpg.ForeignKeyViolationError:
        raise Reject(
            "SUBSCRIPTION_NOT_FOUND", "The tenant has no such subscription.", status=404
        ) from None


def _is_same(row: asyncpg.Record, wanted: RegisterDevice, token: str) -> bool:
    return hmac.compare_digest(row["provision_token_hash"] or b"", _hash(token)) and (
        row["site_id"],
        orjson.loads(row["metadata"]),
        row["subscription_id"],
        row["sensor_limit"],
    ) == (wanted.site_id, wanted.metadata, wanted.subscription_id, wanted.sensor_limit)


def _token(given: SecretStr | None, ctx: Context) -> str:
    if given is None:
        return secrets.token_urlsafe(_TOKEN_BYTES)
    settings: DeviceSettings = ctx.settings
    if len(token := given.get_secret_value()) < settings.min_token_length:
        raise Reject(
            "TOKEN_TOO_SHORT",
            f"A token must have at least {settings.min_token_length} characters.",
            status=422,
        )
    return token


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _device(row: Any) -> Device:  # noqa: ANN401 - a row, whose columns the model checks
    return Device.model_validate({**row, "metadata": orjson.loads(row["metadata"])})


def _with_token(row: Any, token: str) -> DeviceWithToken:  # noqa: ANN401 - likewise
    return DeviceWithToken(**_device(row).model_dump(), provision_token=token)
