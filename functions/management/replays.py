"""Endpoints that have jobs sent again; `run_replays` sends them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import BaseModel, Field

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_time, as_uuid, cut, read_cursor
from functions.domain.values import NO_NUL, Time
from functions.management.requests import ListRequest, TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("replays.sql"))
# The log of deliveries is kept for 30 days: a message whose delivery was forgotten would be sent
# a second time.
MAX_DAYS = 28
MAX_RUNNING = 10

RangeKind = Literal["failed", "missing", "recover"]
Rate = Annotated[int, Field(ge=1, le=500)]


class CreateReplay(TenantRequest):
    """A wish to send jobs of a route again, from `since` on.

    `failed`: jobs that failed, were refused or given up. `missing`: accepted messages that match
    the route and have no job, since the route was disabled, or did not exist. `recover`: both.

    A `replay_id` makes the request repeatable: the same one twice is one replay.
    """

    route_id: UUID
    kind: RangeKind = "recover"
    since: Time
    until: Time | None = None
    rate_per_s: Rate = 50
    replay_id: UUID | None = None


class ReplayJob(TenantRequest):
    """A wish to send one job again, delivered or not."""

    job_id: Annotated[str, Field(max_length=255, pattern=NO_NUL)]
    replay_id: UUID | None = None


class ReplayRequest(TenantRequest):
    """A request about one replay."""

    replay_id: UUID


class ListReplays(ListRequest, TenantRequest):
    """A request for a tenant's replays, or for those of one route."""

    route_id: UUID | None = None


class Replay(BaseModel):
    """Jobs that are sent again.

    Attributes:
        found: undelivered jobs when the replay was asked for, at most 100,000; messages without a
            job are found while it runs.
        sent: jobs that were sent again. A job that was delivered meanwhile is not delivered twice.
        examined: messages that were examined for a job.
        lost: jobs that could not be sent again, since nothing has their message any more.
        status: `running`, `cancelling`, `cancelled` or `done`.
    """

    replay_id: UUID
    tenant_id: str
    route_id: UUID
    kind: str
    job_id: str | None
    since: datetime | None
    until: datetime
    rate_per_s: int
    status: Literal["running", "cancelling", "cancelled", "done"]
    found: int
    sent: int
    examined: int
    lost: int
    created_at: datetime
    finished_at: datetime | None


async def create_replay(event: Event[CreateReplay], ctx: Context) -> Replay:
    """Send what a route missed again; enables a route that was disabled for its endpoint."""
    wanted = event.data
    now = datetime.now(UTC)
    if wanted.since < now - timedelta(days=MAX_DAYS):
        raise Reject("SINCE_TOO_EARLY", f"`since` may be {MAX_DAYS} days ago at most.", status=422)
    if wanted.until is not None and wanted.until <= wanted.since:
        raise Reject("RANGE_INVALID", "`until` must be later than `since`.", status=422)
    replay_id = wanted.replay_id or uuid4()
    names = (wanted.tenant_id, replay_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        if (known := await connection.fetchrow(_QUERIES["find"], *names)) is not None:
            return _same(known, wanted)
        await _check_running(connection, wanted.tenant_id)
        route = await connection.fetchrow(_QUERIES["route"], wanted.tenant_id, wanted.route_id)
        if route is None:
            raise Reject("ROUTE_NOT_FOUND", "The tenant has no such route.", status=404)
        if route["is_stopped"]:
            raise Reject(
                "ROUTE_STOPPED", "The route is paused or disabled; resume or enable it.", status=409
            )
        # What is sent again is not part of the replay a second time.
        until = min(wanted.until or now, now)
        await connection.execute(
            _QUERIES["insert"],
            *(*names, wanted.route_id, wanted.kind, wanted.since, until, wanted.rate_per_s),
        )
        row = await connection.fetchrow(_QUERIES["find"], *names)
    return _replay(row)


async def replay_job(event: Event[ReplayJob], ctx: Context) -> Replay:
    """Send one job again, even if it was delivered."""
    wanted = event.data
    replay_id = wanted.replay_id or uuid4()
    names = (wanted.tenant_id, replay_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        if (known := await connection.fetchrow(_QUERIES["find"], *names)) is not None:
            if known["job_id"] != wanted.job_id:
                raise _other_replay()
            return _replay(known)
        await _check_running(connection, wanted.tenant_id)
        made = await connection.fetchval(_QUERIES["insert_job"], *names, wanted.job_id)
        if made is None:
            raise Reject(
                "JOB_NOT_FOUND", "The tenant has no such job, or its route is gone.", status=404
            )
        row = await connection.fetchrow(_QUERIES["find"], *names)
    return _replay(row)


async def get_replay(event: Event[ReplayRequest], ctx: Context) -> Replay:
    """One replay, and how far it is."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.tenant_id, event.data.replay_id)
    if row is None:
        raise _not_found()
    return _replay(row)


async def list_replays(event: Event[ListReplays], ctx: Context) -> Page[Replay]:
    """A tenant's replays, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page"],
        *(query.tenant_id, query.route_id),
        *read_cursor(query.cursor, as_time, as_uuid),
        query.limit + 1,
    )
    items = [_replay(row) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.replay_id))


async def cancel_replay(event: Event[ReplayRequest], ctx: Context) -> Replay:
    """End a replay; what it has sent is delivered. A replay that has ended stays as it is."""
    names = (event.data.tenant_id, event.data.replay_id)
    await ctx.postgres.execute(_QUERIES["cancel"], *names)
    return await get_replay(event, ctx)


async def _check_running(connection: Any, tenant_id: str) -> None:  # noqa: ANN401 - a connection
    # Two requests at the same time are counted one after the other.
    await connection.execute(_QUERIES["lock_tenant"], tenant_id)
    if await connection.fetchval(_QUERIES["count_running"], tenant_id) >= MAX_RUNNING:
        raise Reject(
            "TOO_MANY_REPLAYS", f"{MAX_RUNNING} replays of the tenant run already.", status=429
        )


def _same(known: Any, wanted: CreateReplay) -> Replay:  # noqa: ANN401 - a row
    asked = (known["route_id"], known["kind"], known["since"])
    if asked != (wanted.route_id, wanted.kind, wanted.since):
        raise _other_replay()
    return _replay(known)


def _replay(row: Any) -> Replay:  # noqa: ANN401 - a row, whose columns the model checks
    return Replay.model_validate(dict(row))


def _other_replay() -> Reject:
    return Reject("REPLAY_EXISTS", "The tenant has another replay of this id.", status=409)


def _not_found() -> Reject:
    return Reject("REPLAY_NOT_FOUND", "The tenant has no such replay.", status=404)
