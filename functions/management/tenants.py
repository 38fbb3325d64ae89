"""Endpoints for tenants, the owners of devices."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

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
ShownStatus = Literal["ACTIVE", "SUSPENDED", "ERASING"]
Days = Annotated[int, Field(ge=1, le=36_500)]


class CreateTenant(Request):
    """A new tenant, with a MAIN subscription unless `subscription` is null.

    Attributes:
        telemetry_days: how many whole days (UTC) before today rows and minutes of telemetry are
            kept; null: as long as the installation keeps them.
        rollup_days: likewise for hours and days of telemetry; at least `telemetry_days`.
    """

    tenant_id: TenantId
    name: ShortText = ""
    metadata: JsonObject = Field(default_factory=dict)
    telemetry_days: Days | None = None
    rollup_days: Days | None = None
    subscription: NewSubscription | None = NewSubscription()


class UpdateTenant(TenantRequest):
    """A change of a tenant; an absent field stays. Messages of a suspended tenant are refused.

    `telemetry_days` and `rollup_days`: as for a new tenant; null removes the limit.
    """

    status: TenantStatus | None = None
    name: ShortText | None = None
    metadata: JsonObject | None = None
    telemetry_days: Days | None = None
    rollup_days: Days | None = None


class Tenant(BaseModel):
    """A tenant."""

    tenant_id: str
    name: str
    status: ShownStatus
    metadata: dict[str, Any]
    telemetry_days: int | None
    rollup_days: int | None
    created_at: datetime
    updated_at: datetime


def tenant_not_found() -> Reject:
    """The error for a tenant that does not exist."""
    return Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404)


def tenant_being_erased() -> Reject:
    """The error for a tenant that is being erased."""
    return Reject("TENANT_BEING_ERASED", "The tenant is being erased.", status=409)


async def create_tenant(event: Event[CreateTenant], ctx: Context) -> Tenant:
    """Create a tenant. A repeat of the request returns the existing tenant.

    A request with other data, or with a subscription that the tenant does not have, is refused.
    """
    wanted = event.data
    async with _refusals(), ctx.postgres.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(
            _QUERIES["insert"],
            wanted.tenant_id,
            wanted.name,
            json.dumps(wanted.metadata),
            wanted.telemetry_days,
            wanted.rollup_days,
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
    if row is not None and row["status"] == "ERASING":
        raise tenant_being_erased()
    if row is not None and is_same:
        existing = _tenant(row)
        if _data(existing) == _data(wanted):
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
    """Change a tenant's name, metadata, status or retention."""
    change = event.data
    given = change.model_fields_set
    async with _refusals():
        row = await ctx.postgres.fetchrow(
            _QUERIES["update"],
            change.tenant_id,
            change.status,
            change.name,
            None if change.metadata is None else json.dumps(change.metadata),
            "telemetry_days" in given,
            change.telemetry_days,
            "rollup_days" in given,
            change.rollup_days,
        )
    if row is None:
        raise tenant_not_found()
    return _tenant(row)


@asynccontextmanager
async def _refusals() -> AsyncIterator[None]:
    """Refuse what the table refuses.

    A row may not outlive what it is rolled up to, and a tenant's erasure does not end otherwise.
    """
    try:
        yield
    except asyncpg.ObjectInUseError:
        raise tenant_being_erased() from None
    except asyncpg.CheckViolationError as violation:
        if violation.constraint_name != "tenants_retention":
            raise
        raise Reject(
            "RETENTION_INVALID",
            "`rollup_days` needs `telemetry_days`, and must not be less.",
            status=422,
        ) from None


def _data(tenant: CreateTenant | Tenant) -> tuple[object, ...]:
    return tenant.name, tenant.metadata, tenant.telemetry_days, tenant.rollup_days


def _tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(**{**row, "metadata": orjson.loads(row["metadata"])})
