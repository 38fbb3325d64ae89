"""Endpoints for the books of delivery: jobs = delivered + refused + dead + waiting."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from functions.domain.delivery_counts import DeliveryCounts, counts_of_all, counts_of_tenants
from functions.domain.named_sql import read_queries
from functions.management.requests import Request, TenantRequest
from functions.management.tenants import tenant_not_found
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("delivery_books.sql"))


class BooksRequest(Request):
    """A request for the books of all tenants."""


class TenantBooksRequest(TenantRequest):
    """A request for the books of one tenant."""


class Books(BaseModel):
    """Delivery jobs by state, at one moment.

    Attributes:
        jobs: all jobs that the delivery log has; those that ended are forgotten a month later.
        delivered: accepted by their destination.
        refused: refused for good: by an attempt, or for a bound when they were made.
        dead: given up after their last attempt; until a redriven one is tried again.
        waiting: not tried yet, to be tried again, or held while their route is paused.
        waiting_bytes: the size of the waiting ones.
        given_up_bytes: the size of the refused and dead ones.
        in_outbox: waiting ones that no stream has yet.
        oldest_in_outbox_at: when the oldest of those was made.
        is_balanced: `jobs` is the sum of the four states. False would be a defect.
        read_at: the moment.
    """

    jobs: int
    delivered: int
    refused: int
    dead: int
    waiting: int
    waiting_bytes: int
    given_up_bytes: int
    in_outbox: int
    oldest_in_outbox_at: datetime | None
    is_balanced: bool
    read_at: datetime


async def get_books(event: Event[BooksRequest], ctx: Context) -> Books:
    """The books of all tenants together."""
    async with _snapshot(ctx) as connection:
        counts = await counts_of_all(connection)
        outbox = await connection.fetchrow(_QUERIES["outbox_of_all"])
    return _books(counts, outbox)


async def get_tenant_books(event: Event[TenantBooksRequest], ctx: Context) -> Books:
    """The books of one tenant."""
    tenant_id = event.data.tenant_id
    async with _snapshot(ctx) as connection:
        if not await connection.fetchval(_QUERIES["has_tenant"], tenant_id):
            raise tenant_not_found()
        counts = await counts_of_tenants(connection, [tenant_id])
        outbox = await connection.fetchrow(_QUERIES["outbox_of_tenant"], tenant_id)
    return _books(counts.get(tenant_id, DeliveryCounts()), outbox)


@asynccontextmanager
async def _snapshot(ctx: Context) -> AsyncIterator[Any]:
    """A connection whose statements all see the database at one moment."""
    async with (
        ctx.postgres.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


def _books(counts: DeliveryCounts, outbox: Any) -> Books:  # noqa: ANN401 - a row
    ended = counts.delivered + counts.refused + counts.dead
    return Books(**asdict(counts), **outbox, is_balanced=counts.jobs == ended + counts.waiting)
