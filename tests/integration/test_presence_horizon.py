"""Silence is judged as far as ingest has come, and without a system account by messages alone."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.support.host import eventually, running_host
from tests.support.ingest import register
from tests.support.presence import Presence, functions
from tests.support.servers import NatsServer

STREAM = {"name": "TELEMETRY", "subjects": ["telemetry.>"], "storage": "memory"}
CONSUMER = {
    "stream_name": "TELEMETRY",
    "config": {"durable_name": "ingest-workers", "ack_policy": "explicit"},
}


@pytest.fixture
async def presence(postgres_dsn: str) -> AsyncIterator[Presence]:
    pool = await open_pool(postgres_dsn, max_size=4)
    for device in ("dev1", "dev2"):
        await register(pool, device=device)
    yield Presence(pool)
    await pool.close()


@pytest.fixture
async def telemetry(broker: Broker) -> AsyncIterator[None]:
    await broker.api("STREAM.CREATE.TELEMETRY", STREAM)
    await broker.api("CONSUMER.DURABLE.CREATE.TELEMETRY.ingest-workers", CONSUMER)
    yield
    await broker.api("STREAM.DELETE.TELEMETRY", None)


async def test_no_device_is_silent_while_messages_wait_for_ingest(
    nats_server: NatsServer,
    broker: Broker,
    telemetry: None,
    postgres_dsn: str,
    presence: Presence,
) -> None:
    watch = {"watch_presence": functions(nats_server)["watch_presence"]}
    await presence.pool.execute("UPDATE device_registry SET presence_timeout_s = 15")
    await broker.publish("telemetry.test.dev1", b"waits", msg_id="1")
    # Without NATS_SYSTEM_URL there are no sessions.
    async with running_host(nats_server.url, watch, database_url=postgres_dsn):
        early = datetime.now(UTC) - timedelta(seconds=60)
        await presence.see("dev1", early + timedelta(seconds=50))
        await presence.see("dev2", early)
        await presence.becomes("online")
        # Its time was over before the message came that waits.
        await presence.becomes("offline", "dev2")

        async def is_due() -> bool:
            found: bool = await presence.pool.fetchval(
                "SELECT check_at < now() - interval '3 s' FROM device_presence"
                " WHERE device_id = 'dev1'"
            )
            return found

        await eventually(is_due, "the end of the timeout")
        assert (await presence.of())["status"] == "online"

        messages = await broker.pull(
            "TELEMETRY", "ingest-workers", messages=1, size_bytes=1000, wait_s=10
        )
        await broker.request(messages[0].reply, b"+ACK", timeout_s=10)
        await presence.becomes("offline")
