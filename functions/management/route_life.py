"""Endpoints for a route's life: pause, resume, health, test, and the notices to its tenant."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import orjson
from pydantic import BaseModel, Field, StringConstraints

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_time, as_uuid, cut, read_cursor
from functions.domain.values import Time
from functions.management.requests import ListRequest, TenantRequest
from functions.management.route_states import RouteState, find_states
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("route_life.sql"))
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 0.25


class RouteLifeRequest(TenantRequest):
    """A request about one route."""

    route_id: UUID


class RouteTest(RouteLifeRequest):
    """A test of a route; the answer waits up to `wait_s` for the result."""

    # Below the gateway's own time limit.
    wait_s: Annotated[float, Field(ge=0, le=9)] = 8.0


class ListNotices(ListRequest, TenantRequest):
    """A request for a tenant's notices, filtered by kind and time."""

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")] | None = None
    since: Time | None = None


class RouteHealth(RouteState):
    """The life of a route and the health of its endpoint.

    Attributes:
        held_jobs: at most 10,000 are counted.
        undelivered_jobs: jobs that failed, were refused or given up; at most 10,000 are counted.
    """

    route_id: UUID
    tenant_id: str
    is_enabled: bool
    held_jobs: int
    undelivered_jobs: int


class RouteTestResult(BaseModel):
    """The result of a test.

    Attributes:
        outcome: `pending` if there is no result yet; `GET /delivery-attempts?job_id=` shows it.
    """

    job_id: str
    outcome: Literal["delivered", "failed", "refused", "skipped", "pending"]
    status_code: int | None = None
    error_code: str | None = None
    duration_ms: int | None = None
    response_excerpt: str | None = None


class ShownNotice(BaseModel):
    """A notice to a tenant.

    Attributes:
        count: how often the same happened; only the first time made a notice.
    """

    notice_id: UUID
    tenant_id: str
    kind: str
    data: dict[str, Any]
    count: int
    created_at: datetime
    published_at: datetime | None


async def pause_route(event: Event[RouteLifeRequest], ctx: Context) -> RouteHealth:
    """Hold the jobs of a route until it is resumed. They use up no attempts meanwhile."""
    return await _change(event, ctx, "pause")


async def resume_route(event: Event[RouteLifeRequest], ctx: Context) -> RouteHealth:
    """Deliver the held jobs of a route, and take new ones."""
    return await _change(event, ctx, "resume")


async def get_route_health(event: Event[RouteLifeRequest], ctx: Context) -> RouteHealth:
    """A route's state and the health of its endpoint."""
    return await _health(event.data, ctx)


async def test_route(event: Event[RouteTest], ctx: Context) -> RouteTestResult:
    """Send a test message to a route's destination, and wait for the result."""
    query = event.data
    destination_type = await ctx.postgres.fetchval(
        _QUERIES["type"], query.tenant_id, query.route_id
    )
    if destination_type is None:
        raise _not_found()
    job_id = f"test-{uuid4()}"
    job = {
        "job_id": job_id,
        "route_id": str(query.route_id),
        "tenant_id": query.tenant_id,
        "topic": f"tenant/{query.tenant_id}/test",
        "msg_type": "test",
        "payload": {"is_test": True, "text": "This message tests the route. It is no device's."},
        "stored_at": datetime.now(UTC),
        "is_test": True,
    }
    subject = f"routes.{query.tenant_id}.{destination_type}"
    await ctx.publish(subject, orjson.dumps(job), msg_id=job_id)
    return await _result(query, job_id, ctx)


async def list_notices(event: Event[ListNotices], ctx: Context) -> Page[ShownNotice]:
    """A tenant's notices, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["notices"],
        *(query.tenant_id, query.kind, query.since),
        *read_cursor(query.cursor, as_time, as_uuid),
        query.limit + 1,
    )
    items = [ShownNotice.model_validate({**row, "data": orjson.loads(row["data"])}) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.notice_id))


async def _change(event: Event[RouteLifeRequest], ctx: Context, change: str) -> RouteHealth:
    query = event.data
    if await ctx.postgres.fetchval(_QUERIES[change], query.tenant_id, query.route_id) is None:
        raise _not_found()
    return await _health(query, ctx)


async def _health(query: RouteLifeRequest, ctx: Context) -> RouteHealth:
    names = (query.tenant_id, query.route_id)
    row = await ctx.postgres.fetchrow(_QUERIES["jobs"], *names)
    state = (await find_states(ctx.postgres, query.tenant_id, [query.route_id])).get(query.route_id)
    if row is None or state is None:
        raise _not_found()
    return RouteHealth(route_id=names[1], tenant_id=names[0], **row, **state.model_dump())


async def _result(query: RouteTest, job_id: str, ctx: Context) -> RouteTestResult:
    """The result, as soon as the attempt is logged."""
    clock = asyncio.get_running_loop().time
    until_s, look_s = clock() + query.wait_s, _FIRST_LOOK_S
    while True:
        row = await ctx.postgres.fetchrow(_QUERIES["attempt"], query.tenant_id, job_id)
        if row is not None:
            return RouteTestResult(job_id=job_id, **row)
        if clock() >= until_s:
            return RouteTestResult(job_id=job_id, outcome="pending")
        await asyncio.sleep(min(look_s, max(0.0, until_s - clock())))
        look_s = min(2 * look_s, _LAST_LOOK_S)


def _not_found() -> Reject:
    return Reject("ROUTE_NOT_FOUND", "The tenant has no such route.", status=404)
