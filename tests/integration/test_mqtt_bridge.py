"""The bridge with a real Mosquitto and a real nats-server: what is acknowledged is stored."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.broker.connection import Broker
from runtime.host import Host
from tests.support.gateway import STREAMS, count_stored, read_stored
from tests.support.host import eventually, running_host
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

pytestmark = pytest.mark.mosquitto

TELEMETRY = "tenant/t1/device/d1/telemetry"
BRIDGE_STREAM: dict[str, Any] = {
    "MQTT_BRIDGE": {
        "subjects": ["mqtt_bridge.>"],
        "max_msgs_per_subject": 1,
        "max_age": "10s",
        "storage": "memory",
    }
}


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(tmp_path / "mosquitto")
    yield broker
    broker.stop()


@pytest.fixture
async def streams(broker: Broker) -> AsyncIterator[None]:
    for name, subject in STREAMS.items():
        config = {"name": name, "subjects": [subject], "storage": "memory"}
        await broker.api(f"STREAM.CREATE.{name}", config)
    yield
    for name in (*STREAMS, "MQTT_BRIDGE"):
        await broker.api(f"STREAM.DELETE.{name}")


def manifest(mosquitto: Mosquitto, **settings: Any) -> dict[str, Any]:
    return {
        "mqtt_bridge": {
            "handler": "functions.mqtt_bridge:serve",
            "service": True,
            "settings": {"url": mosquitto.url, "sessions": 1, **settings},
        }
    }


@asynccontextmanager
async def bridging(
    server: NatsServer, mosquitto: Mosquitto, **settings: Any
) -> AsyncIterator[Host]:
    async with running_host(
        server.url, manifest(mosquitto, **settings), streams=BRIDGE_STREAM
    ) as host:
        await connected(mosquitto, settings.get("sessions", 1))
        yield host


async def connected(mosquitto: Mosquitto, sessions: int = 1) -> None:
    """Return when the broker has had so many subscriptions of the bridge."""

    async def look() -> bool:
        # The client id stands in front of the filter.
        return mosquitto.log.count("$share/runtime/tenant/+/device/+/# (QoS 1)") >= sessions

    await eventually(look, f"{sessions} subscriptions of the bridge")


async def publish(mosquitto: Mosquitto, topic: str, *payloads: str | bytes, qos: int = 1) -> None:
    def run() -> None:
        with MqttSession(mosquitto.port) as session:
            for payload in payloads:
                session.publish(topic, payload, qos)

    await asyncio.to_thread(run)


async def stored(broker: Broker, count: int) -> dict[str, int]:
    """What the streams hold, as soon as they hold so many messages."""

    async def look() -> dict[str, int] | None:
        found = await count_stored(broker)
        return found if sum(found.values()) >= count else None

    return await eventually(look, f"{count} stored messages") or {}


async def test_what_a_device_publishes_is_stored_in_its_envelope(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, '{"metrics": {"temp": 21}}')
        assert await stored(broker, 1) == {"TELEMETRY": 1}
    message = await read_stored(broker, "TELEMETRY")
    assert message.subject == "telemetry.t1"
    assert message.document["topic"] == TELEMETRY
    assert json.loads(message.document["payload"]) == {"metrics": {"temp": 21}}
