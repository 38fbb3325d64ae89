"""A bridge to a real Mosquitto, run inside a test with a real nats-server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from runtime.broker.connection import Broker
from runtime.host import Host
from tests.support.gateway import STREAMS, count_stored, read_stored
from tests.support.host import eventually, running_host
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

TELEMETRY = "tenant/t1/device/d1/telemetry"
COMMANDS = "tenant/t1/device/d1/commands"
MARK_KEY = "the key of the installation, which signs"
BRIDGE_STREAM: dict[str, Any] = {
    "MQTT_BRIDGE": {
        "subjects": ["mqtt_bridge.>"],
        "max_msgs_per_subject": 1,
        "max_age": "10s",
        "storage": "memory",
    }
}


@asynccontextmanager
async def made_streams(broker: Broker) -> AsyncIterator[None]:
    """The streams that take what devices send; in the end they and the bridge's are deleted."""
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
            "settings": {"url": mosquitto.url, "mark_key": MARK_KEY, **settings},
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
        return mosquitto.log.count("tenant/+/device/+/# (QoS 1)") >= sessions

    await eventually(look, f"{sessions} subscriptions of the bridge")


async def publish(mosquitto: Mosquitto, topic: str, *payloads: str | bytes, qos: int = 1) -> None:
    def run() -> None:
        with MqttSession(mosquitto.port) as session:
            for payload in payloads:
                session.publish(topic, payload, qos)

    await asyncio.to_thread(run)


async def sent(mosquitto: Mosquitto, count: int) -> bool | None:
    """Whether the broker has sent the bridge so many messages."""
    return mosquitto.log.count("Sending PUBLISH to runtime-bridge-1") >= count or None


async def logged(lines: Any, event: str) -> Any:
    """The first line of this sentence."""
    return next((each for each in lines if each["event"] == event), None)


async def payloads_of(broker: Broker, count: int) -> list[str]:
    """The payloads of stream TELEMETRY, in its order."""
    found = [await read_stored(broker, "TELEMETRY", n) for n in range(1, count + 1)]
    return [message.document["payload"] for message in found]


async def stored(broker: Broker, count: int) -> dict[str, int]:
    """What the streams hold, as soon as they hold so many messages."""

    async def look() -> dict[str, int] | None:
        found = await count_stored(broker)
        return found if sum(found.values()) >= count else None

    return await eventually(look, f"{count} stored messages") or {}


__all__ = [
    "BRIDGE_STREAM",
    "COMMANDS",
    "MARK_KEY",
    "TELEMETRY",
    "bridging",
    "connected",
    "logged",
    "made_streams",
    "manifest",
    "payloads_of",
    "publish",
    "sent",
    "stored",
]
