"""Silence is judged as far as ingest has come, and without a system account by messages alone."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from functions.presence.horizon import find_horizon
from runtime import Context, Message
from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox
from runtime.context import Scope
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

LOG: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()


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


async def test_no_device_is_silent_while_messages_wait_in_the_mailbox_of_ingest(
    broker: Broker, telemetry: None
) -> None:
    mailbox = Mailbox(broker)
    await mailbox.ensure()
    now = datetime.now(UTC)
    context = Context(Scope("watch_presence", None, broker, {}, LOG))
    assert await find_horizon(context, now) == now
    message = a_message(now - timedelta(minutes=5))
    await mailbox.park(message, "another", 3600)
    assert await find_horizon(context, now) == now
    await mailbox.park(message, "ingest", 3600)
    assert now - await find_horizon(context, now) == timedelta(minutes=5)
    await mailbox.post(a_message(now - timedelta(minutes=7)), "ingest_unmapped")
    assert now - await find_horizon(context, now) == timedelta(minutes=7)
    # More than are looked at: any of them may be as old as ingest tries a message.
    for number in range(100):
        await mailbox.post(a_message(now - timedelta(minutes=1), number + 10), "ingest")
    assert now - await find_horizon(context, now) == timedelta(minutes=20)
    await broker.api("STREAM.PURGE.MAILBOX")


def a_message(stored_at: datetime, sequence: int = 1) -> Message:
    return Message(
        subject="telemetry.test.dev1",
        data=b"waits",
        stream="TELEMETRY",
        sequence=sequence,
        stored_at_ns=round(stored_at.timestamp() * 1_000_000) * 1000,
    )
