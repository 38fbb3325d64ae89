"""Endpoints for claim codes, which a device exchanges for a token of its own."""

import hashlib
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self
from uuid import UUID

import asyncpg
import orjson
from pydantic import BaseModel, Field, model_validator

from functions.domain.identifiers import DeviceId
from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_time, as_uuid, cut, read_cursor
from functions.domain.values import JsonObject, Name, ShortText, Time
from functions.management.devices import device_not_found, lock_tenant
from functions.management.requests import ListRequest, TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("claim_codes.sql"))
# Crockford's base 32: without letters that look like others.
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LENGTH, _GROUP = 16, 4
_READ_AS = str.maketrans("OIL", "011", "- ")
_MAX_OPEN = 1000
_MAX_ENDED = 5000


class CreateClaimCode(TenantRequest):
    """A new code: for one registered device, or for devices that the claims register.

    Attributes:
        name: what a person knows the code by.
        device_id: a registered device; a claim gives it a new token, once.
        site_id: without `device_id`, the site of the devices to register, with the next three.
        max_claims: how many devices may be registered.
        expires_at: no claim from then on; absent for a week from now.
    """

    name: ShortText = ""
    device_id: DeviceId | None = None
    site_id: Name | None = None
    subscription_id: UUID | None = None
    sensor_limit: Annotated[int, Field(ge=0, le=10_000)] = 20
    metadata: JsonObject = Field(default_factory=dict)
    max_claims: Annotated[int, Field(ge=1, le=10_000)] = 1
    expires_at: Time | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.device_id is None) == (self.site_id is None):
            raise ValueError("a code has either `device_id` or `site_id`")
        if self.device_id is not None and self.max_claims > 1:
            raise ValueError("the code of a registered device is for one claim")
        if self.expires_at is not None and self.expires_at <= datetime.now(UTC):
            raise ValueError("`expires_at` is past")
        return self


class ClaimCodeRequest(TenantRequest):
    """A request about one code."""

    claim_code_id: UUID


class ListClaimCodes(ListRequest, TenantRequest):
    """A request for a page of a tenant's codes."""


class ClaimCode(BaseModel):
    """A code, without the code itself. `claims`: how many devices have used it."""

    claim_code_id: UUID
    tenant_id: str
    name: str
    device_id: str | None
    site_id: str | None
    subscription_id: UUID | None
    sensor_limit: int
    metadata: dict[str, Any]
    max_claims: int
    claims: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


class NewClaimCode(ClaimCode):
    """A new code; `code` is shown only now."""

    code: str


async def create_claim_code(event: Event[CreateClaimCode], ctx: Context) -> NewClaimCode:
    """Make a code and show it once.

    Raises:
        Reject: `TOO_MANY_CLAIM_CODES` (409) when a thousand can be used already.
    """
    wanted, code = event.data, _make_code()
    async with ctx.postgres.acquire() as connection, connection.transaction():
        await lock_tenant(connection, wanted.tenant_id)
        await connection.execute(_QUERIES["forget"], wanted.tenant_id, _MAX_ENDED)
        if await connection.fetchval(_QUERIES["is_full"], wanted.tenant_id, _MAX_OPEN):
            text = f"A tenant may have {_MAX_OPEN} codes that can be used; revoke one."
            raise Reject("TOO_MANY_CLAIM_CODES", text, status=409)
        row = await _insert(connection, wanted, code)
    return NewClaimCode(**_claim_code(row).model_dump(), code=code)


async def list_claim_codes(event: Event[ListClaimCodes], ctx: Context) -> Page[ClaimCode]:
    """A tenant's codes, newest first; empty for an unknown tenant."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page"],
        query.tenant_id,
        *read_cursor(query.cursor, as_time, as_uuid),
        query.limit + 1,
    )
    items = [_claim_code(row) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.claim_code_id))


async def revoke_claim_code(event: Event[ClaimCodeRequest], ctx: Context) -> ClaimCode:
    """End a code; devices that were claimed with it stay. Revoking it again is not an error."""
    query = event.data
    row = await ctx.postgres.fetchrow(_QUERIES["revoke"], query.tenant_id, query.claim_code_id)
    if row is None:
        raise Reject("CLAIM_CODE_NOT_FOUND", "The tenant has no such code.", status=404)
    return _claim_code(row)


def digest_of_code(text: str) -> bytes | None:
    """The SHA-256 by which a code is known; None for a text that is no code.

    As a person may write it: in small letters, without dashes, with O for 0 and I or L for 1.
    """
    code = text.upper().translate(_READ_AS)
    if len(code) != _LENGTH or not set(code) <= set(_LETTERS):
        return None
    return hashlib.sha256(code.encode()).digest()


def _make_code() -> str:
    """A code of 80 random bits, such as `7KQ2-9FXA-03MB-ZT5D`."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
    return "-".join(letters[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


async def _insert(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
    wanted: CreateClaimCode,
    code: str,
) -> asyncpg.Record | None:
    try:
        return await connection.fetchrow(
            _QUERIES["insert"],
            wanted.tenant_id,
            digest_of_code(code),
            wanted.name,
            wanted.device_id,
            wanted.site_id,
            wanted.subscription_id,
            wanted.sensor_limit,
            json.dumps(wanted.metadata),
            wanted.max_claims,
            wanted.expires_at,
        )
    except asyncpg.ForeignKeyViolationError as violation:
        if "device_id" in str(violation.constraint_name):
            raise device_not_found() from None
        raise Reject(
            "SUBSCRIPTION_NOT_FOUND", "The tenant has no such subscription.", status=404
        ) from None


def _claim_code(row: Any) -> ClaimCode:  # noqa: ANN401 - a row, whose columns the model checks
    return ClaimCode.model_validate({**row, "metadata": orjson.loads(row["metadata"])})


__all__ = [
    "ClaimCode",
    "ClaimCodeRequest",
    "CreateClaimCode",
    "ListClaimCodes",
    "NewClaimCode",
    "create_claim_code",
    "digest_of_code",
    "list_claim_codes",
    "revoke_claim_code",
]
