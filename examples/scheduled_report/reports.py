"""Counts visits by day, and publishes a report by the clock."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import BaseModel

from runtime import Batch, Context


class Visit(BaseModel):
    """One visit of a page."""

    page: str


class Line(BaseModel):
    """The visits of one page on one day."""

    day: date
    page: str
    visits: int


async def count(batch: Batch[Visit], ctx: Context) -> None:
    """Stores visits, one row each."""
    # The key of a row is its message's place in the stream: one that comes again adds no row.
    await ctx.postgres.executemany(
        "INSERT INTO visits (sequence, stored_at, page) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        [(event.sequence, event.stored_at, event.data.page) for event in batch],
    )


async def report(ctx: Context) -> None:
    """Publishes the visits of each page by day."""
    rows = await ctx.postgres.fetch(
        "SELECT (stored_at AT TIME ZONE 'UTC')::date AS day, page, count(*) AS visits FROM visits"
        " WHERE stored_at >= $1::timestamptz - interval '7 days' GROUP BY 1, 2 ORDER BY 1, 2",
        ctx.due_at,
    )
    # The host derives the message id from the tick, so a repeated attempt publishes nothing twice.
    await ctx.publish("reports.visits", draw([dict(row) for row in rows]))
    ctx.log.info("Reported", lines=len(rows))


def draw(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as lines of JSON."""
    lines = [Line.model_validate(row).model_dump_json() for row in rows]
    return "\n".join(lines).encode()
