"""Endpoint for the log of delivery attempts."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, StringConstraints

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_integer, as_text, as_time, cut, read_cursor
from functions.domain.values import NO_NUL, ShortText, Time
from functions.management.requests import ListRequest
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("deliveries.sql"))

AttemptOutcome = Literal["delivered", "failed", "refused", "skipped"]


class ListAttempts(ListRequest):
    """A request for attempts, filtered by tenant, route, job, outcome and time."""

    tenant_id: TenantId | None = None
    route_id: ShortText | None = None
    job_id: Annotated[str, StringConstraints(max_length=255, pattern=NO_NUL)] | None = None
    outcome: AttemptOutcome | None = None
    since: Time | None = None
    # An excerpt has up to 64 KB, and the reply is one NATS message of at most 1 MB.
    limit: Annotated[int, Field(ge=1, le=100)] = 50


class Attempt(BaseModel):
    """One attempt to deliver a job."""

    tenant_id: str
    job_id: str
    attempt: int
    route_id: str
    destination_type: str
    started_at: datetime
    duration_ms: int
    outcome: AttemptOutcome
    status_code: int | None
    error_code: str | None
    response_excerpt: str | None


async def list_attempts(event: Event[ListAttempts], ctx: Context) -> Page[Attempt]:
    """Delivery attempts, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page"],
        query.tenant_id,
        query.route_id,
        query.job_id,
        query.outcome,
        query.since,
        *read_cursor(query.cursor, as_time, as_text, as_text, as_integer),
        query.limit + 1,
    )
    items = [Attempt.model_validate(dict(row)) for row in rows]
    return cut(
        items,
        query.limit,
        lambda item: (item.started_at, item.tenant_id, item.job_id, item.attempt),
    )
