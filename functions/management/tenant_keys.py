"""Endpoints for the keys with which a tenant's own programs use the API."""

from datetime import datetime
from pathlib import Path
from uuid import UUID

import asyncpg
from pydantic import BaseModel

from functions.domain.named_sql import read_queries
from functions.domain.paging import Cursor, Page, as_time, as_uuid, cut, read_cursor
from functions.domain.tenant_keys import KeyOwners, ShownKeys, digest_of, make_key
from functions.domain.values import Limit, ShortText, Time
from functions.management.requests import TenantRequest
from functions.management.tenants import tenant_not_found
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("tenant_keys.sql"))


class CreateTenantKey(TenantRequest):
    """A new key. `expires_at`: not valid from then on; absent for never."""

    name: ShortText = ""
    expires_at: Time | None = None


class TenantKeyRequest(TenantRequest):
    """A request about one key."""

    key_id: UUID


class ListTenantKeys(TenantRequest):
    """A request for a page of a tenant's keys."""

    limit: Limit = 100
    cursor: Cursor | None = None


class TenantKey(BaseModel):
    """A key, without the key itself."""

    key_id: UUID
    tenant_id: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewTenantKey(TenantKey):
    """A new key; `key` is shown only now."""

    key: str


async def create_tenant_key(event: Event[CreateTenantKey], ctx: Context) -> NewTenantKey:
    """Make a key and show it once."""
    wanted, key = event.data, make_key()
    try:
        row = await ctx.postgres.fetchrow(
            _QUERIES["insert"],
            wanted.tenant_id,
            wanted.name,
            bytes.fromhex(digest_of(key)),
            wanted.expires_at,
        )
    except asyncpg.ForeignKeyViolationError:
        raise tenant_not_found() from None
    if row is None:
        raise Reject("TOO_MANY_KEYS", "A tenant may have 100 valid keys.", status=409)
    return NewTenantKey(**row, key=key)


async def list_tenant_keys(event: Event[ListTenantKeys], ctx: Context) -> Page[TenantKey]:
    """A tenant's keys, newest first."""
    query = event.data
    if not await ctx.postgres.fetchval(_QUERIES["tenant_exists"], query.tenant_id):
        raise tenant_not_found()
    rows = await ctx.postgres.fetch(
        _QUERIES["page"],
        query.tenant_id,
        *read_cursor(query.cursor, as_time, as_uuid),
        query.limit + 1,
    )
    items = [TenantKey(**row) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.key_id))


async def revoke_tenant_key(event: Event[TenantKeyRequest], ctx: Context) -> TenantKey:
    """Revoke a key. Gateways refuse it after their `token_cache_s` at the latest."""
    query = event.data
    row = await ctx.postgres.fetchrow(_QUERIES["revoke"], query.tenant_id, query.key_id)
    if row is None:
        raise Reject("KEY_NOT_FOUND", "The tenant has no such key.", status=404)
    return TenantKey(**row)


async def prove_tenant_keys(event: Event[ShownKeys], ctx: Context) -> KeyOwners:
    """The tenant of each key, as it is now."""
    shown = event.data.keys
    rows = await ctx.postgres.fetch(_QUERIES["owners"], [bytes.fromhex(each) for each in shown])
    owners = {row["digest"]: row["tenant_id"] for row in rows}
    return KeyOwners(tenants=[owners.get(each) for each in shown])
