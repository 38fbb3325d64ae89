"""Ingest publishes route jobs to a real stream."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime import PublishFailed
from runtime.broker.connection import Broker
from tests.support.deliveries import pull
from tests.support.ingest import GOOD, STORED_AT_NS, Ingest, raw, register, started

STREAM = {
    "name": "ROUTES",
    "subjects": ["routes.>"],
    "retention": "workqueue",
    "storage": "memory",
    "duplicate_window": 120_000_000_000,
}
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


async def add_route(function: Ingest, topic_filter: str, payload_filter: str | None = None) -> str:
    route_id = await function.pool.fetchval(
        "INSERT INTO message_routes"
        " (tenant_id, name, topic_filter, destination_type, destination_config, payload_filter)"
        " VALUES ('test', gen_random_uuid()::text, $1, 'webhook', '{\"secret\": \"hidden\"}', $2)"
        " RETURNING id::text",
        topic_filter,
        payload_filter,
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
    repeated = raw(1)
    repeated.attempt = 2
    await function.run(repeated)
    assert await stored(broker) == 1


async def test_jobs_that_could_not_be_published_come_with_the_next_attempt(
    function: Ingest, broker: Broker
) -> None:
    await add_route(function, "#")
    await function.restart()
    message = raw(1)
    with pytest.raises(PublishFailed):
        await function.run(message)
    assert await function.counts() == (1, 0)
    await broker.api("STREAM.CREATE.ROUTES", STREAM)
    await function.run(message)
    assert await function.counts() == (1, 0)
    assert await stored(broker) == 1
    await broker.api("STREAM.DELETE.ROUTES", None)
