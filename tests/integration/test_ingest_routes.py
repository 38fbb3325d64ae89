"""Ingest commits route jobs with its rows, and they reach a real stream."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest

from functions.ingest.plan import stored_at
from runtime.broker.connection import Broker
from tests.support.deliveries import pull
from tests.support.host import eventually
from tests.support.ingest import GOOD, STORED_AT_NS, Ingest, raw, register, started
from tests.support.outbox import hand_over_of, handing_over

STREAM = {
    "name": "ROUTES",
    "subjects": ["routes.>"],
    "retention": "workqueue",
    "storage": "memory",
    "duplicate_window": 120_000_000_000,
}
SLOW = "||".join(f"payload.text.matches('(a{{1,{50 + n}}}){{1,30}}b')" for n in range(22))
"""About six seconds on 4000 characters."""
CONSUMER = {"stream_name": "ROUTES", "config": {"durable_name": "all", "ack_policy": "explicit"}}


@pytest.fixture
async def routes_stream(broker: Broker) -> AsyncIterator[None]:
    await broker.api("STREAM.CREATE.ROUTES", STREAM)
    await broker.api("CONSUMER.DURABLE.CREATE.ROUTES.all", CONSUMER)
    yield
    await broker.api("STREAM.DELETE.ROUTES", None)


@pytest.fixture
async def function(postgres_dsn: str, broker: Broker) -> AsyncIterator[Ingest]:
    async with started(postgres_dsn, broker) as running:
        await register(running.pool)
        yield running


async def add_route(
    function: Ingest, topic_filter: str, payload_filter: str | None = None, tenant: str = "test"
) -> str:
    route_id = await function.pool.fetchval(
        "INSERT INTO message_routes"
        " (tenant_id, name, topic_filter, destination_type, destination_config, payload_filter)"
        " VALUES ($3, gen_random_uuid()::text, $1, 'webhook', '{\"secret\": \"hidden\"}', $2)"
        " RETURNING id::text",
        topic_filter,
        payload_filter,
        tenant,
    )
    return str(route_id)


async def stored(broker: Broker) -> int:
    info: dict[str, Any] = await broker.api("STREAM.INFO.ROUTES", None)
    return int(info["state"]["messages"])


@pytest.mark.usefixtures("routes_stream")
async def test_a_message_becomes_a_job_for_every_route_that_takes_it(
    function: Ingest, broker: Broker
) -> None:
    taken = await add_route(function, "tenant/test/#", "metrics.temp > 20")
    await add_route(function, "tenant/test/device/other/#")
    await add_route(function, "#", "metrics.temp > 30")
    await add_route(function, "#", "metrics.absent > 30")
    await add_route(function, "#", "metrics.temp / 0 > 1")
    await function.restart()
    await function.run(raw(1), raw(2, b"not json"), raw(3, {**GOOD, "metrics": {"temp": 1}}))
    await hand_over(function, broker)
    assert await stored(broker) == 1
    (message,) = await pull(broker, "ROUTES", "all")
    assert message.subject == "routes.test.webhook"
    job = json.loads(message.data)
    stored_at = job.pop("stored_at")
    assert stored_at.startswith("2023-11-14T22:13:21.123456")
    assert job == {
        "job_id": f"TELEMETRY-1-{STORED_AT_NS + 1_000_000_000}-{taken}",
        "route_id": taken,
        "tenant_id": "test",
        "device_id": "dev1",
        "topic": "tenant/test/device/dev1/telemetry",
        "msg_type": "telemetry",
        "payload": {"site_id": "s1", "metrics": {"temp": 22}},
    }
    assert b"hidden" not in message.data
    assert b"tok" not in message.data


@pytest.mark.usefixtures("routes_stream")
async def test_a_redelivered_message_makes_no_second_job(function: Ingest, broker: Broker) -> None:
    await add_route(function, "#")
    await function.restart()
    await function.run(raw(1))
    await hand_over(function, broker)
    # Even without the stream's memory of message ids.
    await broker.api("STREAM.PURGE.ROUTES", None)
    repeated = raw(1)
    repeated.attempt = 2
    await function.run(repeated)
    # Another host's first delivery of the same message: it does not know that it is a repeat.
    await function.run(raw(1), raw(2))
    await hand_over(function, broker)
    assert await stored(broker) == 1
    assert await function.pool.fetchval("SELECT count(*) FROM delivery_jobs") == 2


async def test_rows_are_committed_while_no_stream_takes_their_jobs_and_the_jobs_come_later(
    function: Ingest, broker: Broker, postgres_dsn: str
) -> None:
    await add_route(function, "#")
    await function.restart()
    async with handing_over(postgres_dsn, broker):
        await function.run(raw(1))
        assert await function.counts() == (1, 0)
        await broker.api("STREAM.CREATE.ROUTES", STREAM)

        async def is_stored() -> bool:
            return await stored(broker) == 1

        await eventually(is_stored, "the job")
    assert await function.pool.fetchval("SELECT count(*) FROM delivery_outbox") == 0
    await broker.api("STREAM.DELETE.ROUTES", None)


async def test_batches_with_jobs_in_an_order_are_committed_in_the_order_of_their_messages(
    function: Ingest,
) -> None:
    await add_route(function, "#")
    await function.pool.execute("UPDATE message_routes SET order_by = 'device_id'")
    await function.restart()
    async with function.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        # The first batch waits for this transaction, whose row has the key of its own.
        await connection.execute(
            "INSERT INTO telemetry (time, tenant_id, device_id, site_id, msg_type, seq, metrics)"
            " VALUES ($1, 'test', 'dev1', 's1', 'telemetry', 1, '{}')",
            stored_at(raw(1)),
        )
        first = asyncio.create_task(function.run(raw(1)))

        async def waits() -> bool:
            return bool(
                await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
            )

        await eventually(waits, "a batch that waits")
        second = asyncio.create_task(function.run(raw(2)))
        await asyncio.wait([second], timeout=0.2)
        await transaction.rollback()
    await asyncio.gather(first, second)
    jobs = await function.pool.fetch("SELECT msg_id FROM delivery_outbox ORDER BY outbox_id")
    assert [job["msg_id"].split("-")[1] for job in jobs] == ["1", "2"]


async def test_filters_of_one_tenant_that_take_too_long_harm_no_other_and_are_told(
    function: Ingest,
) -> None:
    await register(function.pool, tenant="healthy")
    for number in range(8):
        await add_route(function, "#", f"{SLOW} || {number} > 9")
    await add_route(function, "#", "metrics.temp > 20.0")
    await add_route(function, "#", "metrics.temp > 20.0", tenant="healthy")
    await function.restart()
    slow = {**GOOD, "text": "a" * 4000}
    mine = [raw(number, slow) for number in range(1, 6)]
    others = [raw(number, subject="telemetry.healthy.dev1") for number in range(6, 26)]
    await function.run(*mine, *others)
    # Every row is written, and every job of a filter that was evaluated.
    assert await function.counts() == (25, 0)
    jobs = await function.pool.fetch(
        "SELECT tenant_id, count(*) AS count FROM delivery_jobs GROUP BY tenant_id"
    )
    assert {job["tenant_id"]: job["count"] for job in jobs}["healthy"] == 20
    notices = await function.pool.fetch("SELECT * FROM notices ORDER BY data->>'code'")
    told = {json.loads(each["data"])["code"]: each for each in notices}
    assert told.keys() == {"FILTER_STOPPED", "FILTERS_OVER_BUDGET"}
    assert {each["tenant_id"] for each in notices} == {"test"}
    # Each of the 40 evaluations that were not made is counted, and none of the quick filter's
    # after its first, when it was not known to be quick.
    missing = sum(each["count"] for each in notices)
    assert 40 <= missing <= 45
    since = json.loads(told["FILTER_STOPPED"]["data"])["since"]
    assert datetime.fromisoformat(since) == stored_at(mine[0])
    # The attackers' budget is used up, and its quick filter goes on.
    await function.run(raw(30, slow), raw(31, subject="telemetry.healthy.dev1"))
    assert (await function.counts())[0] == 27


async def hand_over(function: Ingest, broker: Broker) -> None:
    """Publish what the outbox has."""
    mover = hand_over_of(function.pool, broker)
    while await mover.move():
        pass
