"""Jobs in the outbox reach their stream, whatever happens between commit, publish and removal."""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from functions.domain.outbox import REPEATED_HEADER, NewJob, add_jobs, add_message
from functions.route_delivery.outbox import TOO_LARGE
from runtime.broker.connection import Broker
from runtime.context import PubAck, Publication
from runtime.resource.postgres import open_pool
from tests.support.deliveries import pull
from tests.support.outbox import hand_over_of, handing_over

STREAM = {
    "name": "ROUTES",
    "subjects": ["routes.>"],
    "retention": "workqueue",
    "storage": "memory",
    "discard": "new",
    "duplicate_window": 120_000_000_000,
}
CONSUMER = {"stream_name": "ROUTES", "config": {"durable_name": "all", "ack_policy": "explicit"}}


Pool = asyncpg.Pool


class Killed(BaseException):
    """The host died."""


class DyingBroker:
    """A broker of a host that dies when the stream has confirmed a publish."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def publish_many(self, publications: list[Publication]) -> list[PubAck]:
        await self._broker.publish_many(publications)
        raise Killed


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator["Pool[asyncpg.Record]"]:
    opened = await open_pool(postgres_dsn, max_size=4)
    yield opened
    await opened.close()


@pytest.fixture
async def routes(broker: Broker) -> AsyncIterator[None]:
    await broker.api("STREAM.CREATE.ROUTES", STREAM)
    await broker.api("CONSUMER.DURABLE.CREATE.ROUTES.all", CONSUMER)
    yield
    await broker.api("STREAM.DELETE.ROUTES", None)


async def make(
    pool: "Pool[asyncpg.Record]",
    *jobs: str,
    tenant: str = "t",
    body: bytes = b"{}",
    key: str | None = None,
) -> None:
    """Make jobs of these ids."""
    subject = f"routes.{tenant}.webhook" + (f".{key}" if key else "")
    async with pool.acquire() as connection, connection.transaction():
        await add_jobs(
            connection,
            [NewJob(tenant, job, "r", "webhook", body, None, subject) for job in jobs],
        )


async def move_all(pool: "Pool[asyncpg.Record]", broker: Any, *, rows: int = 1000) -> None:
    mover = hand_over_of(pool, broker, rows=rows)
    while await mover.move():
        pass


async def ids(broker: Broker, count: int) -> list[str]:
    return [one.headers["Nats-Msg-Id"] for one in await pull(broker, "ROUTES", "all", count)]


async def waiting(pool: "Pool[asyncpg.Record]") -> tuple[int, int]:
    """How many rows wait, and how many of them may be in the stream already."""
    row = await pool.fetchrow(
        "SELECT (SELECT count(*) FROM delivery_outbox), (SELECT count(*) FROM delivery_outbox o"
        " JOIN delivery_handovers h ON h.outbox_ids @> o.outbox_id)"
    )
    assert row is not None
    return int(row[0]), int(row[1])


@pytest.mark.usefixtures("routes")
async def test_a_job_is_handed_over_when_it_is_committed_and_not_at_the_next_look(
    pool: "Pool[asyncpg.Record]",
    broker: Broker,
    postgres_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("functions.route_delivery.hand_over._LOOK_EVERY_S", 600.0)
    async with handing_over(postgres_dsn, broker):
        await make(pool, "first")
        await ids(broker, 1)
        for number in range(5):
            await make(pool, f"job-{number}")
            await ids(broker, 1)
    assert await waiting(pool) == (0, 0)


@pytest.mark.usefixtures("routes")
async def test_a_rolled_back_message_makes_no_job(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        job = NewJob("t", "lost", "r", "webhook", b"{}", None, "routes.t.webhook")
        await add_jobs(connection, [job])
        await transaction.rollback()
    await make(pool, "kept")
    await move_all(pool, broker)
    assert await ids(broker, 1) == ["kept"]
    assert await pool.fetchval("SELECT count(*) FROM delivery_jobs") == 1


@pytest.mark.usefixtures("routes")
async def test_a_job_that_was_made_before_is_not_made_again_whatever_became_of_it(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    for status in ("waiting", "failing", "delivered", "refused", "dead"):
        await make(pool, status)
        await pool.execute("UPDATE delivery_jobs SET status = $1 WHERE job_id = $1", status)
    await move_all(pool, broker)
    assert len(await ids(broker, 5)) == 5
    await make(pool, "waiting", "failing", "delivered", "refused", "dead", "new")
    await move_all(pool, broker)
    assert await ids(broker, 1) == ["new"]
    assert await waiting(pool) == (0, 0)


@pytest.mark.usefixtures("routes")
async def test_a_host_that_dies_before_it_removes_what_the_stream_has_makes_no_second_job(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    await make(pool, "a", "b")
    with pytest.raises(Killed):
        await hand_over_of(pool, DyingBroker(broker)).move()
    assert await waiting(pool) == (2, 2)
    await move_all(pool, broker)
    assert await waiting(pool) == (0, 0)
    found = await pull(broker, "ROUTES", "all", 2)
    assert [one.headers["Nats-Msg-Id"] for one in found] == ["a", "b"]
    assert not any(REPEATED_HEADER in one.headers for one in found)
    assert await _messages(broker) == 2


@pytest.mark.usefixtures("routes")
async def test_what_is_published_again_when_the_stream_remembers_it_no_more_says_so(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    await make(pool, "a")
    with pytest.raises(Killed):
        await hand_over_of(pool, DyingBroker(broker)).move()
    # A new stream remembers no message id, as one does after its window, or after a restart.
    await broker.api("STREAM.DELETE.ROUTES", None)
    await broker.api("STREAM.CREATE.ROUTES", STREAM)
    await broker.api("CONSUMER.DURABLE.CREATE.ROUTES.all", CONSUMER)
    await make(pool, "b")
    await move_all(pool, broker)
    found = await pull(broker, "ROUTES", "all", 2)
    told = [(one.headers["Nats-Msg-Id"], one.headers.get(REPEATED_HEADER)) for one in found]
    assert told == [("a", "7"), ("b", None)]
    assert await waiting(pool) == (0, 0)


@pytest.mark.usefixtures("routes")
async def test_a_full_stream_delays_jobs_and_what_it_refused_is_not_taken_for_a_repeat(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    await broker.api("STREAM.UPDATE.ROUTES", {**STREAM, "max_msgs": 2})
    await make(pool, *map(str, range(5)))
    mover = hand_over_of(pool, broker)
    assert await mover.move()
    assert not await mover.move()
    assert mover.is_stuck
    assert await waiting(pool) == (3, 0)
    await broker.api("STREAM.UPDATE.ROUTES", {**STREAM, "max_msgs": 5})
    assert await mover.move()
    assert not mover.is_stuck
    found = await pull(broker, "ROUTES", "all", 5)
    assert [one.headers["Nats-Msg-Id"] for one in found] == list("01234")
    assert not any(REPEATED_HEADER in one.headers for one in found)


async def test_no_confirmation_leaves_the_job_in_doubt_and_no_stream_does_not(
    pool: "Pool[asyncpg.Record]", broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(pool, "a")
    mover = hand_over_of(pool, broker)
    assert not await mover.move()
    assert await waiting(pool) == (1, 0)
    monkeypatch.setattr("runtime.broker.connection.ACK_TIMEOUT_S", 0.05)
    silent = await broker.subscribe("routes.>", lambda _: None)
    assert not await mover.move()
    assert await waiting(pool) == (1, 1)
    await silent.unsubscribe()
    assert not await mover.move()
    assert await waiting(pool) == (1, 1), "a refusal says nothing of the publish before"


@pytest.mark.usefixtures("routes")
async def test_a_job_that_no_server_takes_is_refused_alone(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    await make(pool, "huge", body=b"x" * (broker.max_payload_bytes + 1))
    await make(pool, "small")
    await move_all(pool, broker)
    assert await ids(broker, 1) == ["small"]
    assert await waiting(pool) == (0, 0)
    refused = await pool.fetch("SELECT job_id, refusal FROM delivery_jobs WHERE status = 'refused'")
    assert [tuple(row) for row in refused] == [("huge", TOO_LARGE)]


@pytest.mark.usefixtures("routes")
async def test_queues_take_turns_and_each_keeps_its_order(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    await make(pool, *(f"long-{number}" for number in range(100)), tenant="a")
    await make(pool, "b1", "b2", tenant="b")
    await make(pool, "c1", tenant="c")
    await hand_over_of(pool, broker, rows=12).move()
    first = await ids(broker, 7)
    assert [one for one in first if one.startswith("long")] == [f"long-{n}" for n in range(4)]
    assert [one for one in first if not one.startswith("long")] == ["b1", "b2", "c1"]
    await move_all(pool, broker, rows=12)
    assert await ids(broker, 96) == [f"long-{number}" for number in range(4, 100)]


@pytest.mark.usefixtures("routes")
async def test_of_jobs_in_order_the_next_is_published_only_when_the_one_before_is_stored(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    await make(pool, "a1", key="a")
    await make(pool, "b1", body=b"x" * 2000, key="b")
    await make(pool, "b2", key="b")
    await make(pool, "a2", key="a")
    await make(pool, "free")
    # Only the large job is refused; what comes after it with its key waits.
    await broker.api("STREAM.UPDATE.ROUTES", {**STREAM, "max_msg_size": 1000})
    mover = hand_over_of(pool, broker)
    assert await mover.move()
    assert await ids(broker, 3) == ["a1", "free", "a2"]
    assert await waiting(pool) == (2, 0)
    await broker.api("STREAM.UPDATE.ROUTES", {**STREAM, "max_msg_size": -1})
    await mover.move()
    assert await ids(broker, 2) == ["b1", "b2"]


@pytest.mark.usefixtures("routes")
async def test_a_round_of_jobs_in_order_ends_in_time_and_the_others_go_in_the_next(
    pool: "Pool[asyncpg.Record]", broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(pool, "a1", "a2", "a3", key="a")
    await make(pool, "free")
    monkeypatch.setattr("functions.route_delivery.outbox._ROUND_S", 0.0)
    mover = hand_over_of(pool, broker)
    assert await mover.move()
    # The others were not published, so nobody has to doubt them.
    assert await waiting(pool) == (2, 0)
    while await mover.move():
        pass
    assert await ids(broker, 4) == ["a1", "free", "a2", "a3"]


@pytest.mark.usefixtures("routes")
async def test_a_job_that_is_delivered_before_its_row_is_removed_is_not_published_again(
    pool: "Pool[asyncpg.Record]", broker: Broker
) -> None:
    await make(pool, "done", "open")
    await pool.execute(
        "UPDATE delivery_jobs SET status = 'delivered', content = NULL WHERE job_id = 'done'"
    )
    await move_all(pool, broker)
    assert await ids(broker, 1) == ["open"]
    assert await waiting(pool) == (0, 0)


@pytest.mark.usefixtures("routes")
async def test_a_message_that_no_stream_takes_holds_up_its_own_queue_alone(
    pool: "Pool[asyncpg.Record]", broker: Broker, postgres_dsn: str
) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await add_message(connection, "!notices", "nowhere.t", b"{}", msg_id="n")
    async with handing_over(postgres_dsn, broker):
        await make(pool, "job")
        assert await ids(broker, 1) == ["job"]
    assert await waiting(pool) == (1, 0)


@pytest.mark.usefixtures("routes")
async def test_one_host_at_a_time_publishes(pool: "Pool[asyncpg.Record]", broker: Broker) -> None:
    await make(pool, "a")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtext('delivery_outbox'))")
        assert not await hand_over_of(pool, broker).move()
        assert await _messages(broker) == 0
    assert await hand_over_of(pool, broker).move()
    assert await _messages(broker) == 1


@pytest.mark.usefixtures("routes")
async def test_bytes_bound_a_round_beside_rows(
    pool: "Pool[asyncpg.Record]", broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.route_delivery.outbox._MAX_BYTES", 250)
    await make(pool, *"abcde", body=b"x" * 100)
    await hand_over_of(pool, broker).move()
    assert await _messages(broker) == 3
    await move_all(pool, broker)
    assert await ids(broker, 5) == list("abcde")


async def _messages(broker: Broker) -> int:
    info: dict[str, Any] = await broker.api("STREAM.INFO.ROUTES", None)
    return int(info["state"]["messages"])
