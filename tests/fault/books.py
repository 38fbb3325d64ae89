"""Checks the books of messages and of delivery against what they count, and that nothing waits."""

import asyncpg

from functions.domain.delivery_counts import DeliveryCounts, counts_of_all
from functions.domain.message_counts import counts_of_all as messages_of_all
from functions.domain.message_counts import counts_of_tenant


async def read_books(dsn: str) -> DeliveryCounts:
    """The books at this moment; they are balanced, and agree with the jobs."""
    database = await asyncpg.connect(dsn)
    try:
        async with database.transaction(isolation="repeatable_read", readonly=True):
            counts = await counts_of_all(database)  # type: ignore[arg-type]
            rows = await database.fetch("SELECT status, count(*) FROM delivery_jobs GROUP BY 1")
    finally:
        await database.close()
    by_status = {row["status"]: row["count"] for row in rows}
    waiting = sum(by_status.get(status, 0) for status in ("waiting", "failing", "held"))
    ended = [by_status.get(status, 0) for status in ("delivered", "refused", "dead")]
    assert [counts.waiting, counts.delivered, counts.refused, counts.dead] == [waiting, *ended]
    assert counts.jobs == waiting + sum(ended)
    return counts


async def assert_books_say(dsn: str, *, delivered: int) -> None:
    """Every job is delivered, there are so many, and no trace of a hand-over is left."""
    counts = await read_books(dsn)
    assert (counts.jobs, counts.delivered, counts.waiting) == (delivered, delivered, 0), counts
    assert counts.waiting_bytes == counts.given_up_bytes == 0, counts
    database = await asyncpg.connect(dsn)
    try:
        left = await database.fetchval("SELECT count(*) FROM delivery_outbox")
    finally:
        await database.close()
    assert left == 0


async def assert_message_books_say(dsn: str, tenant_id: str, *, messages: int) -> None:
    """Every stored message of the tenant is written or in quarantine, once, and nothing else is.

    A message that is delivered again is a duplicate and nothing else, however often hosts died.

    Args:
        dsn: the database.
        tenant_id: the only tenant that has sent something.
        messages: how many messages of the tenant the stream has.
    """
    database = await asyncpg.connect(dsn)
    try:
        async with database.transaction(isolation="repeatable_read", readonly=True):
            counts = await counts_of_tenant(database, tenant_id)  # type: ignore[arg-type]
            everything = await messages_of_all(database)  # type: ignore[arg-type]
            rows = await database.fetchval("SELECT count(*) FROM telemetry")
            kept = await database.fetchval("SELECT count(*) FROM quarantine_events")
    finally:
        await database.close()
    assert everything == counts, (everything, counts)
    assert (counts.written, counts.quarantined, counts.refused) == (rows, kept, 0), counts
    ended = counts.written + counts.quarantined + counts.refused
    assert counts.received == ended + counts.duplicate, counts
    assert ended == messages, (counts, messages)
