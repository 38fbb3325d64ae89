"""Messages to devices by a real Mosquitto: acknowledged to JetStream after the broker's PUBACK."""

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from functions.domain.downlinks import downlink_stream_subject
from functions.shadow.answers import Cause, answers_to_update, as_downlinks, snapshot
from functions.shadow.shadow import Shadow, ShadowKey, Update
from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import consumer, eventually, letters_of, running_host, wait_for_letters
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

pytestmark = pytest.mark.mosquitto

DURABLE = "downlinks-mqtt-bridge"
TOPIC = "tenant/t1/device/d1/commands"


@pytest.fixture
def sessions() -> Any:
    with ExitStack() as stack:
        yield stack


@asynccontextmanager
async def sending(server: NatsServer, mosquitto: Mosquitto) -> AsyncIterator[None]:
    functions = {
        "mqtt_downlinks": {
            "handler": "functions.mqtt_bridge.downlink:send_downlinks",
            "consumer": {"stream": "DOWNLINKS", "durable": DURABLE},
            "batch": {"size": 50, "wait": "5ms"},
            "concurrency": 1,
            "retry": {"attempts": 100, "delay": "100ms", "cap": "500ms"},
            "settings": {"url": mosquitto.url},
        }
    }
    streams = {"DOWNLINKS": {"subjects": ["downlinks.>"], "storage": "memory"}}
    async with running_host(server.url, functions, streams=streams):
        yield


@pytest.fixture
async def reported(broker: Broker) -> AsyncIterator[list[str]]:
    """The commands that doors have reported as sent."""
    commands: list[str] = []

    answers: set[asyncio.Future[None]] = set()

    def take(message: Message) -> None:
        commands.extend(each["command_id"] for each in json.loads(message.data)["commands"])
        answers.add(asyncio.ensure_future(broker.publish_core(message.reply, b"{}")))

    subscription = await broker.subscribe("management.commands.sent", take)
    yield commands
    await subscription.unsubscribe()
    await broker.api("STREAM.DELETE.DOWNLINKS")


async def give(
    broker: Broker, command_id: str, *, expires_in_s: float = 3600, **fields: object
) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=expires_in_s)
    body = {"command_id": command_id, "expires_at": expires_at.isoformat(), **fields}
    subject = f"downlinks.t1.d1.commands.{command_id}"
    await broker.publish(subject, json.dumps(body).encode())


async def listen(stack: ExitStack, mosquitto: Mosquitto, topic: str = TOPIC) -> MqttSession:
    session = await asyncio.to_thread(stack.enter_context, MqttSession(mosquitto.port))
    await asyncio.to_thread(session.subscribe, topic)
    return session


async def hear(session: MqttSession) -> str:
    message = await asyncio.to_thread(session.received.get, timeout=60)
    assert message.qos == 1
    return str(json.loads(message.payload)["command_id"])


async def settled(broker: Broker) -> None:
    async def look() -> bool:
        found = await consumer(broker, "DOWNLINKS", DURABLE)
        return not found["num_pending"] and not found["num_ack_pending"]

    await eventually(look, "everything settled")


async def test_commands_reach_a_device_in_their_order_and_are_reported(
    nats_server: NatsServer,
    broker: Broker,
    mosquitto: Mosquitto,
    sessions: ExitStack,
    reported: list[str],
) -> None:
    device = await listen(sessions, mosquitto)
    wanted = [f"c{number}" for number in range(120)]
    async with sending(nats_server, mosquitto):
        for command_id in wanted:
            await give(broker, command_id)
        assert [await hear(device) for _ in wanted] == wanted
        await settled(broker)
    assert reported == wanted


async def test_answers_about_shadows_reach_a_device_on_their_topics(
    nats_server: NatsServer,
    broker: Broker,
    mosquitto: Mosquitto,
    sessions: ExitStack,
    reported: list[str],
) -> None:
    device = await listen(sessions, mosquitto, "tenant/t1/device/d.1/shadow/#")
    key, cause = ShadowKey("t1", "d.1", "config"), Cause("SHADOW-1-2", 7)
    shadow, update = Shadow(key), Update({"desired": {"a": 1}})
    at_ns = shadow.update(update, shadow.stamp_call)
    answers = answers_to_update(update, at_ns, snapshot(Shadow(key)), shadow, cause)
    downlinks = as_downlinks(key, answers, cause)
    async with sending(nats_server, mosquitto):
        for each in downlinks:
            place = (each.tenant_id, each.device_id, each.kind, each.key)
            await broker.publish(downlink_stream_subject(*place), each.body, msg_id=each.msg_id)
        heard = [await asyncio.to_thread(device.received.get, timeout=60) for _ in downlinks]
    below = "tenant/t1/device/d.1/shadow/name/config"
    kinds = ("update/accepted", "update/documents", "delta")
    assert [(message.topic, message.payload) for message in heard] == [
        (f"{below}/{kind}", each.body) for kind, each in zip(kinds, downlinks, strict=True)
    ]
    assert reported == []


async def test_while_the_broker_is_away_a_message_waits_and_is_not_acknowledged(
    nats_server: NatsServer,
    broker: Broker,
    mosquitto: Mosquitto,
    sessions: ExitStack,
    reported: list[str],
) -> None:
    mosquitto.stop()
    async with sending(nats_server, mosquitto):
        await give(broker, "c1")

        async def is_tried_again() -> bool:
            found = await consumer(broker, "DOWNLINKS", DURABLE)
            return bool(found["num_redelivered"]) and bool(found["num_ack_pending"])

        await eventually(is_tried_again, "a second attempt")
        assert reported == []
        mosquitto.start()
        device = await listen(sessions, mosquitto)
        await settled(broker)
        await give(broker, "c2")
        heard = [await hear(device)]
        if heard == ["c1"]:  # It came back before the device did.
            heard.append(await hear(device))
    assert heard[-1] == "c2"
    assert reported == ["c1", "c2"]


async def test_while_the_broker_is_away_a_command_waits_no_longer_than_it_lives(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, reported: list[str]
) -> None:
    mosquitto.stop()
    async with sending(nats_server, mosquitto):
        await give(broker, "c1", expires_in_s=2)
        await settled(broker)
        letters = [each.message.subject for each in await letters_of(broker, "mqtt_downlinks")]
    assert reported == []
    assert "downlinks.t1.d1.commands.c1" not in letters


async def test_a_message_without_a_puback_is_not_acknowledged(
    nats_server: NatsServer,
    broker: Broker,
    mosquitto: Mosquitto,
    sessions: ExitStack,
    reported: list[str],
) -> None:
    async with sending(nats_server, mosquitto):
        await give(broker, "c1")
        await settled(broker)
        mosquitto.pause()  # The connection stays; nobody answers.
        await give(broker, "c2")

        async def is_with_the_function() -> bool:
            return bool((await consumer(broker, "DOWNLINKS", DURABLE))["num_ack_pending"])

        await eventually(is_with_the_function, "a delivered message")
        mosquitto.kill()
        assert reported == ["c1"]
        mosquitto.start()
        await settled(broker)
    assert reported == ["c1", "c2"]


@contextmanager
def listening_by_mqtt_5(mosquitto: Mosquitto) -> Iterator["queue.Queue[MQTTMessage]"]:
    """The messages to the device, with their properties."""
    received: queue.Queue[MQTTMessage] = queue.Queue()
    subscribed = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_message = lambda _client, _data, message: received.put(message)
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", mosquitto.port)
    client.loop_start()
    try:
        client.subscribe(TOPIC, qos=1)
        assert subscribed.wait(30)
        yield received
    finally:
        client.disconnect()
        client.loop_stop()


async def test_a_command_that_is_too_late_is_dropped_and_one_in_time_says_how_long_it_may_wait(
    nats_server: NatsServer,
    broker: Broker,
    mosquitto: Mosquitto,
    reported: list[str],
) -> None:
    with listening_by_mqtt_5(mosquitto) as received:
        async with sending(nats_server, mosquitto):
            await give(broker, "late", expires_in_s=-1)
            await give(broker, "soon", expires_in_s=900, timeout_s=3600)
            await give(broker, "short", expires_in_s=7200, timeout_s=600)
            await give(broker, "old", expires_in_s=1800)
            heard = [await asyncio.to_thread(received.get, timeout=60) for _ in range(3)]
            await settled(broker)
    assert reported == ["soon", "short", "old"]
    kept_s = {
        json.loads(message.payload)["command_id"]: vars(message.properties)["MessageExpiryInterval"]
        for message in heard
    }
    # A busy machine may need some of the time.
    assert 800 < kept_s["soon"] <= 900
    assert 500 < kept_s["short"] <= 600
    assert 1700 < kept_s["old"] <= 1800


async def test_what_is_no_message_to_a_device_is_dropped(
    nats_server: NatsServer,
    broker: Broker,
    mosquitto: Mosquitto,
    sessions: ExitStack,
    reported: list[str],
) -> None:
    everything = await listen(sessions, mosquitto, "#")
    async with sending(nats_server, mosquitto):
        for subject in ("downlinks.t1", "downlinks.t1.d1.telemetry", "downlinks.t1.+.commands.c"):
            await broker.publish(subject, b"{}")
        await broker.publish("downlinks.t1.d1.commands.c0", b"\xff")
        await give(broker, "c1")
        assert await hear(everything) == "c1"
        await settled(broker)


async def test_a_message_that_the_broker_never_takes_becomes_a_dead_letter(
    nats_server: NatsServer,
    broker: Broker,
    sessions: ExitStack,
    reported: list[str],
    tmp_path: Path,
) -> None:
    small = Mosquitto(tmp_path / "small", more="allow_anonymous true\nmax_packet_size 400")
    try:
        async with sending(nats_server, small):
            await broker.publish("downlinks.t1.d1.routed", b"x" * 400)
            [letter] = await wait_for_letters(broker, "mqtt_downlinks")
            await give(broker, "c1")
            await settled(broker)
    finally:
        small.stop()
    assert letter.code == "BROKER_REFUSED"
