"""Endpoints for subscriptions, which limit a tenant's devices in number and time."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_time, as_uuid, cut, read_cursor
from functions.domain.values import Time
from functions.management.requests import ListRequest, Request, TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("subscriptions.sql"))

SubscriptionType = Literal["MAIN", "ADDON", "TRIAL", "TEMPORARY"]
SubscriptionStatus = Literal["TRIAL", "ACTIVE", "GRACE", "SUSPENDED", "EXPIRED"]
DeviceLimit = Annotated[int, Field(ge=0, le=10_000_000)]


class NewSubscription(Request):
    """A subscription; without `expires_at` it does not end."""

    type: SubscriptionType = "MAIN"
    status: SubscriptionStatus = "ACTIVE"
    device_limit: DeviceLimit = 100
    starts_at: Time | None = None
    expires_at: Time | None = None


class CreateSubscription(NewSubscription, TenantRequest):
    """An additional subscription of a tenant."""


class ListSubscriptions(ListRequest, TenantRequest):
    """A request for a tenant's subscriptions."""


class UpdateSubscription(TenantRequest):
    """A change of a subscription; an absent field stays. `expires_at: null` removes the end."""

    subscription_id: UUID
    status: SubscriptionStatus | None = None
    device_limit: DeviceLimit | None = None
    expires_at: Time | None = None


class Subscription(BaseModel):
    """A subscription."""

    subscription_id: UUID
    tenant_id: str
    type: SubscriptionType
    status: SubscriptionStatus
    device_limit: int
    starts_at: datetime
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime


async def insert_subscription(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
    tenant_id: str,
    wanted: NewSubscription,
) -> Subscription:
    """Store a subscription.

    Raises:
        asyncpg.ForeignKeyViolationError: the tenant does not exist.
    """
    row = await connection.fetchrow(
        _QUERIES["insert"],
        tenant_id,
        wanted.type,
        wanted.status,
        wanted.device_limit,
        wanted.starts_at,
        wanted.expires_at,
    )
    return _subscription(row)


async def has_subscription(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
    tenant_id: str,
    wanted: NewSubscription | None,
) -> bool:
    """Whether the tenant has a subscription like this one; for None, whether it has none."""
    same: bool = await connection.fetchval(
        _QUERIES["has_same"],
        tenant_id,
        wanted and wanted.type,
        wanted and wanted.status,
        wanted and wanted.device_limit,
        wanted and wanted.starts_at,
        wanted and wanted.expires_at,
    )
    return same


async def create_subscription(event: Event[CreateSubscription], ctx: Context) -> Subscription:
    """Add a subscription to a tenant."""
    async with ctx.postgres.acquire() as connection:
        try:
            return await insert_subscription(connection, event.data.tenant_id, event.data)
        except asyncpg.ForeignKeyViolationError:
            raise Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404) from None


async def list_subscriptions(event: Event[ListSubscriptions], ctx: Context) -> Page[Subscription]:
    """A tenant's subscriptions, oldest first; empty for an unknown tenant."""
    query = event.data
    created_at, subscription_id = read_cursor(query.cursor, as_time, as_uuid)
    rows = await ctx.postgres.fetch(
        _QUERIES["page"], query.tenant_id, created_at, subscription_id, query.limit + 1
    )
    items = [_subscription(row) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.subscription_id))


async def update_subscription(event: Event[UpdateSubscription], ctx: Context) -> Subscription:
    """Change a subscription's status, size or end."""
    change = event.data
    row = await ctx.postgres.fetchrow(
        _QUERIES["update"],
        change.tenant_id,
        change.subscription_id,
        change.status,
        change.device_limit,
        "expires_at" in change.model_fields_set,
        change.expires_at,
    )
    if row is None:
        raise Reject("SUBSCRIPTION_NOT_FOUND", "The tenant has no such subscription.", status=404)
    return _subscription(row)


def _subscription(row: Any) -> Subscription:  # noqa: ANN401 - a row, whose columns the model checks
    return Subscription.model_validate(dict(row))
