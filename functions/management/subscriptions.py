"""Endpoints for subscriptions, which limit a tenant's devices in number and time."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import asyncpg
from pydantic import BaseModel, Field, model_validator

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_time, as_uuid, cut, read_cursor
from functions.domain.terms import Term, add_term
from functions.domain.values import Time
from functions.management.requests import ListRequest, Request, TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("subscriptions.sql"))

SubscriptionType = Literal["MAIN", "ADDON", "TRIAL", "TEMPORARY"]
SubscriptionStatus = Literal["TRIAL", "ACTIVE", "GRACE", "SUSPENDED", "EXPIRED"]
DeviceLimit = Annotated[int, Field(ge=0, le=10_000_000)]


class NewSubscription(Request):
    """A subscription; without `expires_at` and `term` it does not end.

    `term`: how long it lasts from its start, such as `P1Y`, `P6M`, `P2W` or `P30D`, in place of
    `expires_at`.
    """

    type: SubscriptionType = "MAIN"
    status: SubscriptionStatus = "ACTIVE"
    device_limit: DeviceLimit = 100
    starts_at: Time | None = None
    expires_at: Time | None = None
    term: Term | None = None

    @model_validator(mode="after")
    def _has_one_end(self) -> Self:
        if self.term is not None and self.expires_at is not None:
            raise ValueError("give `term` or `expires_at`, not both")
        return self


class CreateSubscription(NewSubscription, TenantRequest):
    """An additional subscription of a tenant."""


class ListSubscriptions(ListRequest, TenantRequest):
    """A request for a tenant's subscriptions."""


class UpdateSubscription(TenantRequest):
    """A change of a subscription; an absent field stays. `expires_at: null` removes the end.

    `extend_by` moves the end by a term such as `P1Y` or `P1M`, in place of `expires_at`: from the
    present end, or from now if that is past.
    """

    subscription_id: UUID
    status: SubscriptionStatus | None = None
    device_limit: DeviceLimit | None = None
    expires_at: Time | None = None
    extend_by: Term | None = None

    @model_validator(mode="after")
    def _has_one_end(self) -> Self:
        if self.extend_by is not None and "expires_at" in self.model_fields_set:
            raise ValueError("give `extend_by` or `expires_at`, not both")
        return self


class Subscription(BaseModel):
    """A subscription. `active_device_count` are the active devices that count for it."""

    subscription_id: UUID
    tenant_id: str
    type: SubscriptionType
    status: SubscriptionStatus
    device_limit: int
    starts_at: datetime
    expires_at: datetime | None
    active_device_count: int
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
        Reject: the term ends too late.
    """
    starts_at, expires_at = wanted.starts_at, wanted.expires_at
    if wanted.term is not None:
        starts_at = starts_at or await connection.fetchval(_QUERIES["now"])
        expires_at = _end(starts_at, wanted.term)
    row = await connection.fetchrow(
        _QUERIES["insert"],
        tenant_id,
        wanted.type,
        wanted.status,
        wanted.device_limit,
        starts_at,
        expires_at,
    )
    return _subscription(row)


async def has_subscription(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
    tenant_id: str,
    wanted: NewSubscription | None,
) -> bool:
    """Whether the tenant has a subscription like this one; for None, whether it has none."""
    rows = await connection.fetch(_QUERIES["all"], tenant_id)
    if wanted is None:
        return not rows
    return any(_is_same(row, wanted) for row in rows)


def _is_same(row: asyncpg.Record, wanted: NewSubscription) -> bool:
    if (row["type"], row["status"], row["device_limit"]) != (
        *(wanted.type, wanted.status),
        wanted.device_limit,
    ):
        return False
    starts_at = wanted.starts_at or row["starts_at"]
    expires_at = wanted.expires_at if wanted.term is None else _end(starts_at, wanted.term)
    return (row["starts_at"], row["expires_at"]) == (starts_at, expires_at)


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
    identity = (change.tenant_id, change.subscription_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        found = await connection.fetchrow(_QUERIES["lock"], *identity)
        if found is None:
            raise Reject(
                "SUBSCRIPTION_NOT_FOUND", "The tenant has no such subscription.", status=404
            )
        has_end = "expires_at" in change.model_fields_set
        expires_at = change.expires_at
        if change.extend_by is not None:
            if found["expires_at"] is None:
                raise Reject("SUBSCRIPTION_ENDLESS", "The subscription does not end.", status=409)
            has_end = True
            expires_at = _end(max(found["expires_at"], found["now"]), change.extend_by)
        row = await connection.fetchrow(
            _QUERIES["update"], *identity, change.status, change.device_limit, has_end, expires_at
        )
    return _subscription(row)


def _end(start: datetime, term: str) -> datetime:
    try:
        return add_term(start.astimezone(UTC), term)
    except ValueError:
        raise Reject("TERM_TOO_LONG", "The term ends after the year 9998.", status=422) from None


def _subscription(row: Any) -> Subscription:  # noqa: ANN401 - a row, whose columns the model checks
    return Subscription.model_validate(dict(row))
