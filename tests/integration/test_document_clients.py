"""Clients of a user's own that subscribe as the first documents' code does share the consumers."""

import nats
import pytest

from runtime.broker.connection import Broker
from runtime.broker.streams import ensure, plan
from runtime.cli.manifests import shipped_manifests
from runtime.manifest import read
from runtime.process.placeholders import placeholders
from runtime.settings import HostSettings
from tests.support.servers import NatsServer

MANIFEST = read(shipped_manifests(["backbone", "messaging"]), placeholders(HostSettings()))


@pytest.mark.parametrize(
    ("stream", "subject", "durable"),
    [
        ("TELEMETRY", "telemetry.>", "ingest-workers"),
        ("SHADOW", "shadow.>", "ingest-shadow"),
        ("COMMANDS", "commands.>", "ingest-commands"),
        ("SMS", "sms.send", "sms-worker"),
        ("EMAIL", "email.send", "email-worker"),
    ],
)
async def test_a_pull_subscription_takes_messages_and_changes_no_consumer(
    nats_server: NatsServer,
    broker: Broker,
    stream: str,
    subject: str,
    durable: str,
) -> None:
    await ensure(broker, MANIFEST)
    client = await nats.connect(nats_server.anonymous_url)
    js = client.jetstream()
    subscription = await js.pull_subscribe(subject=subject, durable=durable, stream=stream)

    await js.publish(subject.replace(">", "test-tenant"), b"{}")
    [message] = await subscription.fetch(batch=50, timeout=10)
    await message.ack_sync()
    await client.close()

    assert message.data == b"{}"
    assert await plan(broker, MANIFEST) == []
