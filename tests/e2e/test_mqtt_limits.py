"""The limits of nats-server's MQTT listener that docs/operations.md states."""

import queue
from typing import Any

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from runtime.broker.connection import Broker
from tests.support.gateway import read_stored
from tests.support.mqtt import MqttSession, publish_with_dup
from tests.support.servers import NatsServer

_TIMEOUT_S = 10.0


def connected(server: NatsServer) -> MqttSession:
    return MqttSession(server.mqtt_port, server.mqtt_user, server.mqtt_password)


@pytest.mark.parametrize("topic", ["tenant/test/device/dev1/telemetry", "elsewhere/dev1"])
async def test_a_puback_is_not_storage(nats_server: NatsServer, broker: Broker, topic: str) -> None:
    # No stream takes the first, no permission allows the second, and the device learns of neither.
    with connected(nats_server) as session:
        published = session._client.publish(topic, b"gone", qos=1)
        published.wait_for_publish(_TIMEOUT_S)

    assert published.is_published()
    found = await broker.api("STREAM.NAMES", {"subject": "telemetry.test.dev1"})
    assert not found["streams"]


async def test_a_message_that_a_device_repeats_is_stored_twice(
    nats_server: NatsServer, broker: Broker
) -> None:
    await broker.api("STREAM.CREATE.REPEATED", {"name": "REPEATED", "subjects": ["telemetry.>"]})
    try:
        login = (nats_server.mqtt_user, nats_server.mqtt_password)
        await publish_with_dup(nats_server.mqtt_port, "tenant/test/device/dev1/telemetry", login)
        state = (await broker.api("STREAM.INFO.REPEATED"))["state"]
    finally:
        await broker.api("STREAM.DELETE.REPEATED")
    assert state["messages"] == 2


async def test_messages_are_stored_once_each_in_their_order(
    nats_server: NatsServer, broker: Broker
) -> None:
    await broker.api("STREAM.CREATE.ORDERED", {"name": "ORDERED", "subjects": ["telemetry.>"]})
    wanted = [f"{number}" for number in range(50)]
    try:
        with connected(nats_server) as session:
            for payload in wanted:
                session.publish("tenant/test/device/dev1/telemetry", payload)
        stored = [await read_stored(broker, "ORDERED", number) for number in range(1, 51)]
        state = (await broker.api("STREAM.INFO.ORDERED"))["state"]
    finally:
        await broker.api("STREAM.DELETE.ORDERED")
    assert [message.data.decode() for message in stored] == wanted
    assert state["messages"] == 50


def test_a_shared_subscription_is_refused(nats_server: NatsServer) -> None:
    with connected(nats_server) as session:
        assert session.subscribe("tenant/test/#") == "Granted QoS 1"
        assert session.subscribe("$share/group/tenant/test/#") == "Unspecified error"


def test_mqtt_5_is_refused(nats_server: NatsServer) -> None:
    answers: queue.Queue[str] = queue.Queue()
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)

    def answer(_client: Client, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        answers.put(str(reason))

    client.on_connect = answer
    client.username_pw_set(nats_server.mqtt_user, nats_server.mqtt_password)
    client.connect("127.0.0.1", nats_server.mqtt_port)
    client.loop_start()
    try:
        assert answers.get(timeout=_TIMEOUT_S) == "Unsupported protocol version"
    finally:
        client.disconnect()
        client.loop_stop()
