"""Writes a batch's rows, quarantine and sensors in one transaction."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import asyncpg

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import quarantine_many
from functions.domain.topics import Topic
from functions.ingest.plan import Plan, Row, Settled, stored_at
from runtime import Message, Retry

_QUERIES = read_queries(Path(__file__).with_name("writing.sql"))
_CROSSED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
# Errors that the content of a single row causes.
_ROW_FAULTS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
)

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


async def find_settled(pool: Pool, unsure: Iterable[tuple[Message, Topic | None]]) -> Settled:
    """The messages that an earlier, unconfirmed delivery has written or quarantined.

    The verdict of that delivery stands, even if registry or rate would give another one today: a
    message is either a row or in quarantine, never both.
    """
    asked = [(message, topic, stored_at(message)) for message, topic in unsure]
    if not asked:
        return Settled()
    readable = [(message, topic, time) for message, topic, time in asked if topic is not None]
    async with pool.acquire() as connection:
        quarantined = await connection.fetch(
            _QUERIES["find_quarantined"],
            [message.stream for message, _, _ in asked],
            [message.sequence for message, _, _ in asked],
            [time for _, _, time in asked],
        )
        written = await connection.fetch(
            _QUERIES["find_written"],
            [topic.tenant_id for _, topic, _ in readable],
            [topic.device_id for _, topic, _ in readable],
            [time for _, _, time in readable],
            [message.sequence for message, _, _ in readable],
        )
    return Settled(
        {(row["seq"], row["time"]) for row in written},
        {(row["sequence"], row["stored_at"]) for row in quarantined},
    )


async def write(pool: Pool, plan: Plan) -> None:
    """Commit the plan.

    Raises:
        Retry: a deadlock or serialization failure with another host's transaction.
        asyncpg.PostgresError, OSError: an outage; the outcome is unknown.
    """
    if not (plan.rows or plan.refused):
        return
    try:
        try:
            await _commit(pool, plan, copy=True)
        except asyncpg.UniqueViolationError:
            # Another host wrote some of the rows between `find_settled` and COPY.
            await _commit(pool, plan, copy=False)
    except _CROSSED as crossed:
        raise Retry("another transaction was in conflict with this one", delay_s=0.05) from crossed
    except _ROW_FAULTS:
        await _isolate(pool, plan)
        await _commit(pool, plan, copy=False)
    for found in plan.discovered.values():
        found.device.sensors.add(found.sensor)


async def _commit(pool: Pool, plan: Plan, *, copy: bool) -> None:
    async with pool.acquire() as connection, connection.transaction():
        if plan.rows and copy:
            await connection.copy_records_to_table(
                "telemetry", records=plan.rows, columns=Row._fields
            )
        elif plan.rows:
            await _insert(connection, plan.rows)
        if plan.refused:
            await quarantine_many(connection, plan.refused)
        if plan.discovered:
            await _register_sensors(connection, plan)


async def _insert(connection: Connection, rows: list[Row]) -> None:
    await connection.execute(_QUERIES["insert_new"], *map(list, zip(*rows, strict=True)))


async def _register_sensors(connection: Connection, plan: Plan) -> None:
    devices = sorted({key[:2] for key in plan.discovered})
    found = list(plan.discovered.values())
    await connection.execute(_QUERIES["lock_devices"], *map(list, zip(*devices, strict=True)))
    await connection.execute(
        _QUERIES["register_sensors"],
        [one.tenant_id for one in found],
        [one.device_id for one in found],
        [one.sensor for one in found],
        [one.first_seen_at for one in found],
    )


async def _isolate(pool: Pool, plan: Plan) -> None:
    """Try each row alone, and move the rows that PostgreSQL refuses into quarantine."""
    for place in reversed(range(len(plan.rows))):
        fault = await _fault(pool, plan.rows[place])
        if fault is not None:
            plan.refuse_row(place, f"INGEST_EXCEPTION:{fault}", "the database refuses the row")


async def _fault(pool: Pool, row: Row) -> str | None:
    """The type of the error that the row causes, or None. The insert is rolled back."""
    async with pool.acquire() as connection:
        attempt = connection.transaction()
        await attempt.start()
        try:
            await _insert(connection, [row])
        except _ROW_FAULTS as fault:
            return type(fault).__name__
        finally:
            await attempt.rollback()
    return None


__all__ = ["find_settled", "write"]
