"""Every door takes the same message types: the table of docs/http.md, cell by cell.

A door is the code, or the server, that makes a stored message of what a device sends. The function
that reads the stream then says what becomes of it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import nats
import pytest
from nats.js.api import StreamConfig

from functions.domain.broker_messages import Publish, make_message
from functions.domain.envelope import BadEnvelope, read_envelope
from functions.domain.topics import DOWNLINKS, SHADOW_REQUESTS
from functions.http_gateway.device_messages import make_envelope, read_topic
from functions.http_gateway.problems import ProblemError
from functions.ingest.unmapped import quarantine_unmapped
from runtime import Batch, Event, Message
from runtime.broker.connection import Broker
from tests.support.ingest import GOOD, STORED_AT_NS, Ingest, register, started
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer, run_apart

BODY = json.dumps(GOOD).encode()
DEVICE = "tenant/test/device/dev1"
STREAMS = {
    "TELEMETRY": "telemetry.>",
    "SHADOW": "shadow.>",
    "COMMANDS": "commands.>",
    "UNMAPPED": "tenant.>",
}
REFUSED = "refused"
TYPES = {
    **dict.fromkeys(
        ["telemetry", "heartbeat", "event", "status", "alarm", "shadow", "x" * 32], "row"
    ),
    **dict.fromkeys([f"shadow/{request}" for request in sorted(SHADOW_REQUESTS)], "shadow"),
    "shadow/name/pump/update": "shadow",
    "commands/ack": "commands",
    **dict.fromkeys(sorted(DOWNLINKS), REFUSED),
    "shadow/name/pump/delta": REFUSED,
    **dict.fromkeys(
        ["Status", "x" * 33, "a-b", "a b", "a/b", "commands/ack/x", "shadow/other"], REFUSED
    ),
}

Door = Callable[[str], Message]


@pytest.fixture(scope="module", autouse=True)
def _streams(nats_server: NatsServer) -> None:
    async def make() -> None:
        client = await nats.connect(nats_server.url)
        for name, subject in STREAMS.items():
            await client.jetstream().add_stream(StreamConfig(name=name, subjects=[subject]))
        await client.close()

    run_apart(make)


@pytest.fixture
async def function(postgres_dsn: str, broker: Broker) -> AsyncIterator[Ingest]:
    async with started(postgres_dsn, broker) as running:
        await register(running.pool)
        yield running


def stored(subject: str, data: bytes, **headers: str) -> Message:
    stream = next(name for name, each in STREAMS.items() if subject.startswith(each[:-1]))
    return Message(subject, data, headers, stream=stream, sequence=1, stored_at_ns=STORED_AT_NS)


def by_http(msg_type: str) -> Message | None:
    path = f"/ingest/v1/{DEVICE}/{msg_type}".encode()
    if TYPES[msg_type] == REFUSED:
        with pytest.raises(ProblemError) as refused:
            read_topic(path)
        assert (refused.value.status, refused.value.code) == (400, "BAD_TOPIC_FORMAT")
        return None
    topic = read_topic(path)
    return stored(topic.stream_subject, make_envelope(topic, BODY))


def by_emqx(msg_type: str) -> Message:
    publish = Publish("1", f"{DEVICE}/{msg_type}", "", BODY, datetime.now(UTC).isoformat())
    return stored(*make_message(publish, limit_bytes=1_000_000))


def by_envelope(msg_type: str) -> Message:
    family = TYPES[msg_type] if TYPES[msg_type] in {"shadow", "commands"} else "telemetry"
    envelope = {"topic": f"{DEVICE}/{msg_type}", "payload": GOOD}
    return stored(f"{family}.test", json.dumps(envelope).encode())


def by_raw_subject(msg_type: str) -> Message | None:
    if " " in msg_type:
        return None  # NATS has no such subject.
    family, _, rest = msg_type.replace("/", ".").partition(".")
    if TYPES[msg_type] in {"shadow", "commands"}:
        return stored(f"{family}.test.dev1.{rest}", BODY)
    return stored(f"telemetry.test.dev1.{msg_type.replace('/', '.')}", BODY)


def by_mqtt(server: NatsServer, msg_type: str) -> Message | None:
    """What nats-server's own listener stores, with a real client."""

    async def send() -> Message | None:
        client = await nats.connect(server.url)
        arrivals = await client.subscribe(">")
        await client.flush()
        with MqttSession(server.mqtt_port, server.mqtt_user, server.mqtt_password) as session:
            await asyncio.to_thread(session.publish, f"{DEVICE}/{msg_type}", BODY)
        try:
            while True:
                got = await arrivals.next_msg(10)
                if got.data == BODY:
                    return stored(got.subject, got.data, **(got.headers or {}))
        finally:
            await client.close()

    if " " in msg_type:
        return None  # nats-server closes the connection.
    found: list[Message | None] = []

    async def run() -> None:
        found.append(await send())

    run_apart(run)
    return found[0]


async def outcome(function: Ingest, message: Message | None) -> str:
    """What becomes of a stored message: row, shadow, commands, or refused with its reason."""
    if message is None:
        return REFUSED
    if message.stream in {"SHADOW", "COMMANDS"}:
        with suppress(BadEnvelope):
            return read_envelope(message).topic.family
        return REFUSED
    if message.stream == "UNMAPPED":
        await quarantine_unmapped(Batch([Event(message, message.data)]), function.context)
    else:
        await function.run(message)
    rows, refused = await function.rows(), await function.quarantined()
    assert len(rows) + len(refused) == 1
    if rows:
        assert message.subject.split(".")[-1] in {rows[0]["msg_type"], "test", "dev1"}
        return "row"
    assert refused[1]["reason"] == "BAD_TOPIC_FORMAT"
    return REFUSED


@pytest.mark.parametrize("msg_type", TYPES)
@pytest.mark.parametrize("door", [by_http, by_emqx, by_envelope, by_raw_subject, None])
async def test_a_message_type_means_the_same_at_every_door(
    function: Ingest, nats_server: NatsServer, door: Door | None, msg_type: str
) -> None:
    message = by_mqtt(nats_server, msg_type) if door is None else door(msg_type)
    assert await outcome(function, message) == TYPES[msg_type]


async def test_what_the_platform_sends_to_a_device_is_no_message_of_the_device(
    function: Ingest,
) -> None:
    ours: list[Any] = [
        stored(f"tenant.test.device.dev1.{kind}", b"{}")
        for kind in ("commands", "routed", "shadow.desired", "shadow.delta")
    ]
    await quarantine_unmapped(Batch([Event(each, each.data) for each in ours]), function.context)
    assert await function.counts() == (0, 0)


async def test_telemetry_of_any_type_is_written_once_however_often_it_is_delivered(
    function: Ingest,
) -> None:
    good = stored("tenant.test.device.dev1.status", BODY)
    bad = stored("tenant.test.device.dev1.status", b"?")
    bad.sequence = 2
    again = [Event(each, each.data) for each in (good, bad)]
    await quarantine_unmapped(Batch(again), function.context)
    await function.restart()
    for each in (good, bad):
        each.attempt = 2
    await quarantine_unmapped(Batch(again), function.context)
    assert await function.counts() == (1, 1)


async def test_a_replay_knows_every_message_that_the_platform_sends(function: Ingest) -> None:
    for kind in DOWNLINKS:
        subject = f"tenant.t.device.d.{kind.replace('/', '.')}"
        assert not await function.pool.fetchval("SELECT is_judged($1)", subject), kind


@pytest.mark.parametrize(
    ("subject", "is_judged"),
    [
        ("telemetry.t.d", True),
        ("shadow.t.d.reported", True),
        ("commands.t.d.ack", True),
        ("tenant.t.device.d//1.status", True),
        ("tenant.t.device.d.commands", False),
        ("tenant.t.device.d.routed", False),
        ("tenant.t.device.d.shadow.delta", False),
        ("tenant.t.device.d.shadow/delta", False),
        ("tenant.t.device.d.Status", False),
        ("tenant.unmapped", False),
    ],
)
async def test_a_replay_never_sends_what_only_the_platform_sends(
    function: Ingest, subject: str, *, is_judged: bool
) -> None:
    assert await function.pool.fetchval("SELECT is_judged($1)", subject) == is_judged
