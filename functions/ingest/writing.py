"""Writes a batch's rows, jobs, quarantine, sensors and counts in one transaction."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

import asyncpg

from functions.domain.device_activity import note_seen
from functions.domain.message_counts import by_tenant, count_settled
from functions.domain.named_sql import read_queries
from functions.domain.notices import add_notice
from functions.domain.outbox import add_jobs
from functions.domain.quarantine import quarantine_many
from functions.domain.quarantine_replays import accept_copies, lock_open, refuse_copies
from functions.domain.rollup_marks import add_marks
from functions.domain.topics import Topic
from functions.ingest.plan import SURE_NS, DiscoveredSensor, Plan, Row, Settled, stored_at
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

# Of a part of the stream that has more messages than this many times the batch, ask one by one.
_DENSE = 4

_Key: TypeAlias = tuple[int, datetime]
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
    readable = [(message, topic) for message, topic, _ in asked if topic is not None]
    async with pool.acquire() as connection:
        refused = await connection.fetch(
            _QUERIES["find_refused"],
            [message.stream for message, _, _ in asked],
            [message.sequence for message, _, _ in asked],
            [time for _, _, time in asked],
        )
        written = await _written_among(connection, readable)
    return Settled(
        written,
        {(row["sequence"], row["stored_at"]) for row in refused},
    )


async def write(pool: Pool, plan: Plan) -> Mapping[str, int]:
    """Commit the plan.

    Returns:
        How many refused messages quarantine had no room for, by tenant.

    Raises:
        Retry: a deadlock or serialization failure with another host's transaction.
        asyncpg.PostgresError, OSError: an outage; the outcome is unknown.
    """
    if not (plan.rows or plan.refused or plan.repeated or plan.notices):
        return {}
    try:
        try:
            unkept = await _commit_agreed(pool, plan, copy=True)
        except asyncpg.UniqueViolationError:
            # Another host wrote some of the rows between `find_settled` and COPY.
            unkept = await _commit_agreed(pool, plan, copy=False)
    except _CROSSED as crossed:
        raise Retry("another transaction was in conflict with this one", delay_s=0.05) from crossed
    except _ROW_FAULTS:
        await _isolate(pool, plan)
        unkept = await _commit_agreed(pool, plan, copy=False)
    for found in plan.discovered.values():
        found.device.sensors.add(found.sensor)
    for device, (_, seen) in plan.seen.items():
        device.was_noted(seen)
    return unkept


class _SettledOtherwiseError(Exception):
    """Another host has given messages of the plan the other verdict; the transaction ends."""

    def __init__(self, messages: set[Message]) -> None:
        self.messages = messages
        super().__init__(f"{len(messages)} messages")


async def _commit_agreed(pool: Pool, plan: Plan, *, copy: bool) -> Mapping[str, int]:
    """Commit the plan without what other hosts have settled otherwise."""
    while True:
        try:
            return await _commit(pool, plan, copy=copy)
        except _SettledOtherwiseError as otherwise:
            plan.drop(otherwise.messages)


async def _commit(pool: Pool, plan: Plan, *, copy: bool) -> Mapping[str, int]:
    unkept: Mapping[str, int] = {}
    async with pool.acquire() as connection, connection.transaction():
        if plan.copies:
            plan.close_copies(await lock_open(connection, list(plan.copies.values())))
        written = wanted = Counter(row.tenant_id for row in plan.rows)
        if plan.rows and copy:
            await connection.copy_records_to_table(
                "telemetry", records=plan.rows, columns=Row._fields
            )
        elif plan.rows:
            written = await insert_rows(connection, plan.rows)
        await add_marks(connection, plan.rows)
        await note_seen(connection, dict(plan.seen.values()))
        if plan.jobs:
            await add_jobs(connection, [job for _, job in plan.jobs])
        for notice in plan.notices:
            await add_notice(connection, notice)
        if plan.copies:
            await accept_copies(connection, plan.accepted_copies)
            await refuse_copies(connection, plan.refused_copies)
        if plan.refused:
            unkept = await quarantine_many(connection, plan.refused_first)
        if plan.rows or plan.repeated:
            duplicate = wanted - written + Counter(by_tenant(plan.repeated))
            await count_settled(connection, written, duplicate)
        if plan.discovered:
            await register_sensors(connection, list(plan.discovered.values()))
        # Last: what this transaction writes is locked by now.
        await _check_agreement(connection, plan)
    return unkept


async def _check_agreement(connection: Connection, plan: Plan) -> None:
    """Raise `_SettledOtherwiseError` if a message would be row and in quarantine.

    A host that was stopped with messages in its hands knows neither that they were delivered again
    nor what became of them, and its verdict may differ: the rate counts for a first delivery only.
    """
    sure_since_ns = time.time_ns() - SURE_NS
    accepted = plan.unsure(plan.sources, sure_since_ns)
    topics = {each: why.topic for each, why in plan.refused if isinstance(why.topic, Topic)}
    refused = plan.unsure(topics, sure_since_ns)
    otherwise: set[Message] = set()
    # Nothing is found nearly always; only then the times are made, which cost more than the rest.
    if accepted and (keys := await _refused_among(connection, accepted)):
        otherwise.update(each for each in accepted if (each.sequence, stored_at(each)) in keys)
    if refused and (
        keys := await _written_among(connection, [(each, topics[each]) for each in refused])
    ):
        otherwise.update(each for each in refused if (each.sequence, stored_at(each)) in keys)
    if otherwise:
        raise _SettledOtherwiseError(otherwise)


async def _refused_among(connection: Connection, accepted: Sequence[Message]) -> set[_Key]:
    sequences = [each.sequence for each in accepted]
    first, last = min(sequences), max(sequences)
    stream = accepted[0].stream
    if last - first < _DENSE * len(sequences):
        rows = await connection.fetch(_QUERIES["refused_in"], stream, first, last)
    else:
        rows = await connection.fetch(_QUERIES["refused_of"], stream, sequences)
    return {(row["sequence"], row["stored_at"]) for row in rows}


async def _written_among(executor: Connection, asked: Sequence[tuple[Message, Topic]]) -> set[_Key]:
    rows = await executor.fetch(
        _QUERIES["find_written"],
        [topic.tenant_id for _, topic in asked],
        [topic.device_id for _, topic in asked],
        [stored_at(message) for message, _ in asked],
        [message.sequence for message, _ in asked],
    )
    return {(row["seq"], row["time"]) for row in rows}


async def insert_rows(connection: Connection, rows: list[Row]) -> Counter[str]:
    """Insert the rows that are not there yet; how many they were, by tenant."""
    found = await connection.fetch(_QUERIES["insert_new"], *map(list, zip(*rows, strict=True)))
    return Counter({row["tenant_id"]: row["rows"] for row in found})


async def register_sensors(connection: Connection, found: Sequence[DiscoveredSensor]) -> None:
    """Register new names up to each device's limit, in this order."""
    devices = sorted({(one.tenant_id, one.device_id) for one in found})
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
            await insert_rows(connection, [row])
        except _ROW_FAULTS as fault:
            return type(fault).__name__
        finally:
            await attempt.rollback()
    return None


__all__ = ["find_settled", "insert_rows", "register_sensors", "write"]
