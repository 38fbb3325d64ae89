"""Endpoints for tenants, the owners of devices."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import asyncpg
import orjson
from pydantic import BaseModel, Field

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_text, cut, read_cursor
from functions.domain.values import JsonObject, ShortText
from functions.management.requests import ListRequest, Request, TenantRequest
from functions.management.subscriptions import (
    NewSubscription,
    has_subscription,
    insert_subscription,
)
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("tenants.sql"))

TenantStatus = Literal["ACTIVE", "SUSPENDED"]


class CreateTenant(Request):
    """A new tenant, with a MAIN subscription unless `subscription` is null."""

    tenant_id: TenantId
    name: ShortText = ""
    metadata: JsonObject = Field(default_factory=dict)
    subscription: NewSubscription | None = NewSubscription()


class UpdateTenant(TenantRequest):
    """A change of a tenant; an absent field stays. Messages of a suspended tenant are refused."""

    status: TenantStatus | None = None
    name: ShortText | None = None
    metadata: JsonObject | None = None


class Tenant(BaseModel):
    """A tenant."""

    tenant_id: str
    name: str
    status: TenantStatus
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime


def tenant_not_found() -> Reject:
    """The error for a tenant that does not exist."""
    return Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404)


async def create_tenant(event: Event[CreateTenant], ctx: Context) -> Tenant:
    """Create a tenant. A repeat of the request returns the existing tenant.

    A request with other data, or with a subscription that the tenant does not have, is refused.
    """
    wanted = event.data
    async with ctx.postgres.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(
            _QUERIES["insert"], wanted.tenant_id, wanted.name, json.dumps(wanted.metadata)
        )
        if row is not None:
            if wanted.subscription is not None:
                await insert_subscription(connection, wanted.tenant_id, wanted.subscription)
            return _tenant(row)
        row = await connection.fetchrow(_QUERIES["find"], wanted.tenant_id)
        # A request that does not state a subscription agrees with any.
        is_same = "subscription" not in wanted.model_fields_set or await has_subscription(
            connection, wanted.tenant_id, wanted.subscription
        )
    if row is not None and is_same:
        existing = _tenant(row)
        if (existing.name, existing.metadata) == (wanted.name, wanted.metadata):
            return existing
    raise Reject("TENANT_EXISTS", "A tenant with this id exists with other data.", status=409)


async def get_tenant(event: Event[TenantRequest], ctx: Context) -> Tenant:
    """One tenant."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.tenant_id)
    if row is None:
        raise tenant_not_found()
    return _tenant(row)


async def list_tenants(event: Event[ListRequest], ctx: Context) -> Page[Tenant]:
    """Tenants in the order of their ids."""
    limit = event.data.limit
    (after,) = read_cursor(event.data.cursor, as_text)
    rows = await ctx.postgres.fetch(_QUERIES["page"], after, limit + 1)
    return cut([_tenant(row) for row in rows], limit, lambda tenant: (tenant.tenant_id,))


async def update_tenant(event: Event[UpdateTenant], ctx: Context) -> Tenant:
    """Change a tenant's name, metadata or status."""
    change = event.data
    row = await ctx.postgres.fetchrow(
        _QUERIES["update"],
        change.tenant_id,
        change.status,
        change.name,
        None if change.metadata is None else json.dumps(change.metadata),
    )
    if row is None:
        raise tenant_not_found()
    return _tenant(row)


def _tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(**{**row, "metadata": orjson.loads(row["metadata"])})
