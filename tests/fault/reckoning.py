"""Compares all results with what was sent: finds each message by its number in every place."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import asyncpg

from runtime.broker.connection import ApiError, Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.errors import Unavailable
from tests.fault.books import assert_books_say, assert_message_books_say
from tests.fault.endpoint import Endpoint
from tests.fault.rolled_up import assert_all_is_rolled_up
from tests.fault.traffic import TENANT, Traffic
from tests.support.host import eventually


@dataclass(frozen=True)
class Difference:
    """The difference between the numbers found in one place and those expected there once.

    Attributes:
        lost: expected, but not found.
        doubled: found several times.
        strange: found, but not expected.
    """

    name: str
    lost: list[int]
    doubled: list[int]
    strange: list[int]

    @classmethod
    def compare(cls, name: str, found: Counter[int], expected: Iterable[int]) -> "Difference":
        """Compare the numbers found with those expected."""
        wanted = set(expected)
        return cls(
            name,
            lost=sorted(wanted - found.keys()),
            doubled=sorted(number for number, times in found.items() if times > 1),
            strange=sorted(found.keys() - wanted),
        )


async def assert_nothing_lost_nothing_doubled(
    traffic: Traffic, endpoint: Endpoint, broker: Broker, dsn: str
) -> None:
    """Assert that every number is once in its place, and that the sum is what was received."""
    rows, quarantined, delivered = await _read_database(dsn)
    [dead] = await eventually(lambda: _read_dead_letters(broker), "the dead letters", 60)
    places = [
        Difference.compare("rows", rows, range(traffic.count)),
        Difference.compare("quarantine", quarantined, traffic.refused),
        Difference.compare("dead letters", dead, traffic.strays),
        Difference.compare("webhook jobs", endpoint.readings(), traffic.routed),
    ]
    wrong = [place for place in places if place.lost or place.doubled or place.strange]
    assert not wrong, wrong
    assert delivered == Counter(endpoint.accepted.keys()), "the delivery log tells otherwise"
    await assert_books_say(dsn, delivered=len(traffic.routed))
    settled = rows.total() + quarantined.total() + dead.total() + traffic.duplicates
    assert settled == traffic.received, (settled, traffic)
    await assert_all_is_rolled_up(dsn)
    kept = rows.total() + quarantined.total()
    await assert_message_books_say(dsn, TENANT, messages=kept)

    async def is_all_kept() -> bool:
        # A leader that was stopped answers with old data until it learns that it no longer leads.
        try:
            return await messages_in(broker, "TELEMETRY") == kept
        except (ApiError, Unavailable):
            return False

    await eventually(is_all_kept, f"a stream that has {kept}, neither more nor less", 60)


async def _read_dead_letters(broker: Broker) -> list[Counter[int]] | None:
    """The dead letters by number; None while the cluster does not answer."""
    try:
        letters = [letter async for letter in DeadLetters(broker).list()]
    except (ApiError, Unavailable):
        return None
    return [Counter(int(letter.message.data.split()[0]) for letter in letters)]


async def _read_database(dsn: str) -> tuple[Counter[int], Counter[int], Counter[str]]:
    database = await asyncpg.connect(dsn)
    rows = await database.fetch("SELECT (metrics->>'n')::int AS n FROM telemetry")
    quarantine = await database.fetch("SELECT payload FROM quarantine_events")
    jobs = await database.fetch("SELECT job_id FROM delivery_jobs WHERE status = 'delivered'")
    await database.close()
    return (
        Counter(row["n"] for row in rows),
        Counter(json.loads(row["payload"])["payload"]["metrics"]["n"] for row in quarantine),
        Counter(row["job_id"] for row in jobs),
    )


async def is_settled(broker: Broker, dsn: str) -> bool:
    """Whether no message waits anywhere; checks the places in the order of the flow."""
    try:
        return (
            await _has_settled(broker, "TELEMETRY", "ingest-workers")
            and not await _outbox_rows(dsn)
            and await _has_settled(broker, "ROUTES", "route-delivery")
            and not await messages_in(broker, "ROUTES")
            and not await messages_in(broker, "MAILBOX")
        )
    except (ApiError, Unavailable, OSError, asyncpg.PostgresError):
        return False


async def _has_settled(broker: Broker, stream: str, durable: str) -> bool:
    found = await broker.api(f"CONSUMER.INFO.{stream}.{durable}")
    return not found["num_pending"] and not found["num_ack_pending"]


async def _outbox_rows(dsn: str) -> int:
    database = await asyncpg.connect(dsn)
    try:
        return int(await database.fetchval("SELECT count(*) FROM delivery_outbox"))
    finally:
        await database.close()


async def settled_telemetry(broker: Broker) -> int:
    """How many messages ingest has settled on all hosts; -1 while JetStream is away."""
    try:
        stream = await broker.api("STREAM.INFO.TELEMETRY")
        found = await broker.api("CONSUMER.INFO.TELEMETRY.ingest-workers")
    except (ApiError, Unavailable):
        return -1
    waiting = int(found["num_pending"]) + int(found["num_ack_pending"])
    return int(stream["state"]["messages"]) - waiting


async def messages_in(broker: Broker, stream: str) -> int:
    """How many messages a stream holds."""
    return int((await broker.api(f"STREAM.INFO.{stream}"))["state"]["messages"])
