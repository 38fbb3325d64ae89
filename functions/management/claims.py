"""The endpoint at which a device exchanges a claim code for a token of its own."""

from pathlib import Path
from typing import Any

import asyncpg
import orjson
from pydantic import BaseModel

from functions.domain.identifiers import DeviceId
from functions.domain.named_sql import read_queries
from functions.management.claim_codes import digest_of_code
from functions.management.device_tokens import (
    DeviceSettings,
    Token,
    choose_token,
    hash_token,
)
from functions.management.devices import (
    Connection,
    RegisterDevice,
    find_device,
    insert_device,
    lock_tenant,
    replace_token,
)
from functions.management.requests import Request
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("claim_codes.sql"))

# The name under which the host looks for a function's settings.
Settings = DeviceSettings


class ClaimDevice(Request):
    """A device's claim. The code is the bearer token of the request.

    Attributes:
        device_id: the device to register; not needed with the code of a registered device.
        provision_token: a token that the device has made itself. With it the claim can be repeated
            when its answer was lost. Without it the answer has a new token.
    """

    device_id: DeviceId | None = None
    provision_token: Token | None = None


class ClaimedDevice(BaseModel):
    """Who the device is from now on; only this answer shows its token."""

    tenant_id: str
    device_id: str
    site_id: str
    provision_token: str


async def claim_device(event: Event[ClaimDevice], ctx: Context) -> ClaimedDevice:
    """Give the device a token for the code, and register it if the code says so.

    Raises:
        Reject: `CLAIM_CODE_INVALID` (403) for what is no code, which counts as a guess;
            `CLAIM_CODE_ENDED` (410), `CLAIM_CODE_USED`, `CLAIM_CODE_OF_ANOTHER_DEVICE` (409) to who
            has a real one; `DEVICE_EXISTS`, `DEVICE_REVOKED`, `DEVICE_LIMIT_REACHED` (409).
    """
    wanted = event.data
    shown = event.headers.get("Authorization", "").removeprefix("Bearer ")
    digest = digest_of_code(shown)
    token = choose_token(wanted.provision_token, ctx.settings)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        code = None if digest is None else await _find_code(connection, digest)
        if code is None:
            raise Reject("CLAIM_CODE_INVALID", "There is no such claim code.", status=403)
        device_id = _device_of(code, wanted.device_id)
        if wanted.provision_token is not None:
            site_id = await connection.fetchval(
                *(_QUERIES["find_claim"], code["claim_code_id"], code["tenant_id"], device_id),
                hash_token(token),
            )
            if site_id is not None:
                return _claimed(code, device_id, site_id, token)
        _require_open(code)
        site_id = await _give_token(connection, code, device_id, token)
        await connection.execute(
            _QUERIES["note_claim"], code["claim_code_id"], code["tenant_id"], device_id
        )
    ctx.log.info(
        "A device was claimed",
        tenant_id=code["tenant_id"],
        device_id=device_id,
        claim_code_id=str(code["claim_code_id"]),
    )
    return _claimed(code, device_id, site_id, token)


async def _find_code(connection: Connection, digest: bytes) -> asyncpg.Record | None:
    """The code, with its tenant locked."""
    found = await connection.fetchrow(_QUERIES["find_tenant"], digest)
    if found is None:
        return None
    if found["status"] == "SUSPENDED":
        raise Reject("TENANT_SUSPENDED", "The tenant is suspended.", status=409)
    await lock_tenant(connection, found["tenant_id"])
    return await connection.fetchrow(_QUERIES["find"], digest)


def _device_of(code: asyncpg.Record, named: str | None) -> str:
    device_id: str | None = code["device_id"]
    if device_id is None and named is None:
        raise Reject("DEVICE_ID_MISSING", "The claim must name the device.", status=422)
    if device_id is not None and named not in {None, device_id}:
        text = "The claim code is that of another device."
        raise Reject("CLAIM_CODE_OF_ANOTHER_DEVICE", text, status=409)
    return device_id or str(named)


def _require_open(code: asyncpg.Record) -> None:
    if code["is_ended"]:
        raise Reject("CLAIM_CODE_ENDED", "The claim code is expired or revoked.", status=410)
    if code["is_used"]:
        raise Reject("CLAIM_CODE_USED", "The claim code was used before.", status=409)


async def _give_token(
    connection: Connection, code: asyncpg.Record, device_id: str, token: str
) -> str:
    """Register the device or replace its token; its site."""
    known = await find_device(connection, code["tenant_id"], device_id)
    if code["device_id"] is None:
        if known is not None:
            raise Reject("DEVICE_EXISTS", "The device is registered already.", status=409)
        device = RegisterDevice(
            tenant_id=code["tenant_id"],
            device_id=device_id,
            site_id=code["site_id"],
            metadata=orjson.loads(code["metadata"]),
            subscription_id=code["subscription_id"],
            sensor_limit=code["sensor_limit"],
        )
        await insert_device(connection, device, token)
        return device.site_id
    if known is None or known["status"] != "ACTIVE":
        raise Reject("DEVICE_REVOKED", "The device is revoked.", status=409)
    await replace_token(connection, code["tenant_id"], device_id, token)
    return str(known["site_id"])


def _claimed(code: Any, device_id: str, site_id: str, token: str) -> ClaimedDevice:  # noqa: ANN401 - a row
    return ClaimedDevice(
        tenant_id=code["tenant_id"], device_id=device_id, site_id=site_id, provision_token=token
    )


__all__ = ["ClaimDevice", "ClaimedDevice", "Settings", "claim_device"]
