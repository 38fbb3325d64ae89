"""Endpoints for quiet hours and for tenants' rates: when messages are sent, and how many."""

from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import asyncpg
from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_time, as_uuid, cut, read_cursor
from functions.messages.contents import Kind
from functions.messages.policy_requests import PolicyList, PolicyRequest, Regions
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("quiet_hours.sql"))


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("write a time zone such as Europe/Vienna") from None
    return name


def _check_time(at: time) -> time:
    if at.tzinfo is not None or at.microsecond:
        raise ValueError("write a wall-clock time such as 22:00")
    return at


TimeZone = Annotated[
    str,
    StringConstraints(max_length=64, pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"),
    AfterValidator(_check_zone),
]
WallClock = Annotated[time, AfterValidator(_check_time)]
Days = Annotated[tuple[Annotated[int, Field(ge=0, le=6)], ...], Field(min_length=1, max_length=7)]
Rate = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Burst = Annotated[int, Field(ge=1, le=1_000_000)]
EVERY_DAY = tuple(range(7))


class CreateQuietHours(PolicyRequest):
    """New quiet hours. Without `tenant_id` for all tenants, without `kind` for every kind.

    They begin on `days` (0 for Monday) at `starts` and end at the next `ends`, by the clocks of
    `time_zone`; equal times are a whole day.
    """

    tenant_id: TenantId | None = None
    kind: Kind | None = None
    regions: Regions = ()
    time_zone: TimeZone
    starts: WallClock
    ends: WallClock
    days: Days = EVERY_DAY
    high_passes: bool = False


class QuietHoursRequest(PolicyRequest):
    """A request about quiet hours."""

    quiet_hours_id: UUID


class UpdateQuietHours(QuietHoursRequest):
    """A change of quiet hours; an absent field stays as it is."""

    regions: Regions | None = None
    time_zone: TimeZone | None = None
    starts: WallClock | None = None
    ends: WallClock | None = None
    days: Days | None = None
    high_passes: bool | None = None


class ListQuietHours(PolicyList):
    """A request for quiet hours: all, or those of one tenant."""

    tenant_id: TenantId | None = None


class QuietHoursEntry(BaseModel):
    """Quiet hours."""

    quiet_hours_id: UUID
    tenant_id: str | None
    kind: Kind | None
    regions: list[str]
    time_zone: str
    starts: time
    ends: time
    days: list[int]
    high_passes: bool
    created_at: datetime
    updated_at: datetime


class TenantRateRequest(PolicyRequest):
    """A request about the rate of one tenant's messages of one kind."""

    tenant_id: TenantId
    kind: Kind


class SetTenantRate(TenantRateRequest):
    """The rate of a tenant: `burst` messages at once, then `per_s` a second, on all hosts."""

    per_s: Rate
    burst: Burst = 1

    @model_validator(mode="after")
    def _has_room(self) -> "SetTenantRate":
        if self.per_s < 1 / 86_400:
            raise ValueError("per_s must be at least one a day")
        return self


class ListTenantRates(PolicyRequest):
    """A request for a tenant's rates."""

    tenant_id: TenantId


class TenantRateEntry(BaseModel):
    """The rate of a tenant's messages of one kind."""

    tenant_id: str
    kind: Kind
    per_s: float
    burst: int
    created_at: datetime
    updated_at: datetime


class TenantRates(BaseModel):
    """A tenant's rates."""

    items: list[TenantRateEntry]


async def create_quiet_hours(event: Event[CreateQuietHours], ctx: Context) -> QuietHoursEntry:
    """Create quiet hours."""
    wanted = event.data
    try:
        row = await ctx.postgres.fetchrow(
            _QUERIES["insert"],
            *(wanted.tenant_id, wanted.kind, wanted.regions, wanted.time_zone),
            *(wanted.starts, wanted.ends, sorted(set(wanted.days)), wanted.high_passes),
        )
    except asyncpg.ForeignKeyViolationError:
        raise _no_tenant() from None
    return _entry(row)


async def list_quiet_hours(event: Event[ListQuietHours], ctx: Context) -> Page[QuietHoursEntry]:
    """Quiet hours, oldest first."""
    query = event.data
    created_at, quiet_hours_id = read_cursor(query.cursor, as_time, as_uuid)
    rows = await ctx.postgres.fetch(
        _QUERIES["page"], query.tenant_id, created_at, quiet_hours_id, query.limit + 1
    )
    items = [_entry(row) for row in rows]
    return cut(items, query.limit, lambda entry: (entry.created_at, entry.quiet_hours_id))


async def update_quiet_hours(event: Event[UpdateQuietHours], ctx: Context) -> QuietHoursEntry:
    """Change quiet hours. Messages that wait already come back at the time they were told."""
    change = event.data
    row = await ctx.postgres.fetchrow(
        _QUERIES["update"],
        *(change.quiet_hours_id, change.regions, change.time_zone, change.starts, change.ends),
        *(None if change.days is None else sorted(set(change.days)), change.high_passes),
    )
    if row is None:
        raise _no_hours()
    return _entry(row)


async def delete_quiet_hours(event: Event[QuietHoursRequest], ctx: Context) -> QuietHoursEntry:
    """Delete quiet hours."""
    row = await ctx.postgres.fetchrow(_QUERIES["delete"], event.data.quiet_hours_id)
    if row is None:
        raise _no_hours()
    return _entry(row)


async def set_tenant_rate(event: Event[SetTenantRate], ctx: Context) -> TenantRateEntry:
    """Set or replace the rate of a tenant's messages of one kind."""
    wanted = event.data
    try:
        row = await ctx.postgres.fetchrow(
            _QUERIES["set_rate"], wanted.tenant_id, wanted.kind, wanted.per_s, wanted.burst
        )
    except asyncpg.ForeignKeyViolationError:
        raise _no_tenant() from None
    return _rate(row)


async def list_tenant_rates(event: Event[ListTenantRates], ctx: Context) -> TenantRates:
    """A tenant's rates; empty for an unknown tenant."""
    rows = await ctx.postgres.fetch(_QUERIES["rates"], event.data.tenant_id)
    return TenantRates(items=[_rate(row) for row in rows])


async def delete_tenant_rate(event: Event[TenantRateRequest], ctx: Context) -> TenantRateEntry:
    """Delete a tenant's rate: the manifest's holds again, if there is one."""
    query = event.data
    row = await ctx.postgres.fetchrow(_QUERIES["delete_rate"], query.tenant_id, query.kind)
    if row is None:
        raise Reject("RATE_NOT_FOUND", "The tenant has no such rate.", status=404)
    return _rate(row)


def _entry(row: Any) -> QuietHoursEntry:  # noqa: ANN401 - a row, whose columns the model checks
    return QuietHoursEntry.model_validate(dict(row))


def _rate(row: Any) -> TenantRateEntry:  # noqa: ANN401 - a row, whose columns the model checks
    return TenantRateEntry.model_validate(dict(row))


def _no_hours() -> Reject:
    return Reject("QUIET_HOURS_NOT_FOUND", "There are no such quiet hours.", status=404)


def _no_tenant() -> Reject:
    return Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404)
