"""deploy/mosquitto: the configuration starts, and keeps devices from each other and the bridge."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from functions.mqtt_bridge.connection import MqttConnection
from functions.mqtt_bridge.outcomes import Disconnected, NotPublished
from functions.mqtt_bridge.settings import BrokerSettings
from runtime.broker.connection import Broker
from tests.fault.hosts import HostProcess
from tests.support.documentation import ROOT
from tests.support.gateway import count_stored, read_stored
from tests.support.host import eventually
from tests.support.mosquitto import Mosquitto, free_port, mosquitto_hash
from tests.support.raw_mqtt import ACCEPTED, RawMqtt, log_in
from tests.support.servers import NatsServer

pytestmark = pytest.mark.mosquitto

DEPLOY = ROOT / "deploy" / "mosquitto"
PASSWORD = "the password"
BRIDGE_PASSWORD = "the bridge's password"
SESSION = "runtime-bridge-1"
OWN = "tenant/t1/device/d1"
FORGED = (f"{OWN}/commands", "tenant/t1/device/d2/telemetry", f"{OWN}/shadow/delta")
KEEPING = 0
"""Flags of a CONNECT that keeps its session."""


class ShippedMosquitto(Mosquitto):
    """Runs the shipped configuration, with its files in the test's folder."""

    bridge_port = 0

    @property
    def bridge_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.bridge_port}"

    def configuration(self) -> str:
        self.bridge_port = self.bridge_port or free_port()
        known = {"bridge": BRIDGE_PASSWORD, "t1/d1": PASSWORD, "t1/d2": PASSWORD}
        lines = [f"{user}:{mosquitto_hash(password)}\n" for user, password in known.items()]
        (self._directory / "passwords").write_text("".join(lines))
        rights = (DEPLOY / "acl").read_text(encoding="utf-8")
        _, found, devices = rights.partition("user t1/d1")
        another = (found + devices).replace("t1/d1", "t1/d2").replace("device/d1", "device/d2")
        (self._directory / "acl").write_text(rights + another)
        text = (DEPLOY / "mosquitto.conf").read_text(encoding="utf-8")
        text = text.replace("listener 1883", f"listener {self.port}")
        text = text.replace("listener 1884", f"listener {self.bridge_port}")
        text = re.sub("/etc/mosquitto/|/var/lib/mosquitto/", f"{self._directory}/", text)
        return f"{text}\nuser root\nlog_dest stderr\nlog_type all\n"


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[ShippedMosquitto]:
    broker = ShippedMosquitto(tmp_path / "mosquitto")
    yield broker
    broker.stop()


@pytest.fixture
async def streams(broker: Broker) -> AsyncIterator[None]:
    for name, subject in (("TELEMETRY", "telemetry.>"), ("DOWNLINKS", "downlinks.>")):
        config = {"name": name, "subjects": [subject], "storage": "memory"}
        await broker.api(f"STREAM.CREATE.{name}", config)
    yield
    for name in ("TELEMETRY", "DOWNLINKS"):
        await broker.api(f"STREAM.DELETE.{name}")


@pytest.fixture
async def bridge(
    nats_server: NatsServer, mosquitto: ShippedMosquitto, streams: None, tmp_path: Path
) -> AsyncIterator[HostProcess]:
    """A host with the bridge, which is connected."""
    environment = {
        "NATS_URL": nats_server.url,
        "MQTT_BRIDGE_URL": mosquitto.bridge_url,
        "MQTT_BRIDGE_USERNAME": "bridge",
        "MQTT_BRIDGE_PASSWORD": BRIDGE_PASSWORD,
    }
    host = HostProcess("host", [DEPLOY / "bridge.yaml"], environment, tmp_path)
    try:
        await host.start()
        await host.wait_until_ready()

        async def is_connected() -> bool:
            return "The MQTT bridge is connected." in host.log

        await eventually(is_connected, "the bridge")
        yield host
    finally:
        await host.stop()


async def wait_for_stored(broker: Broker, count: int) -> None:
    async def has_come() -> bool:
        return (await count_stored(broker, ("TELEMETRY",))).get("TELEMETRY", 0) >= count

    await eventually(has_come, f"{count} messages")


async def test_the_bridge_takes_what_is_the_device_s_and_nothing_that_it_forges(
    broker: Broker, mosquitto: ShippedMosquitto, bridge: HostProcess
) -> None:
    await publish_as_device(mosquitto.url)
    await wait_for_stored(broker, 2)

    found = [await read_stored(broker, "TELEMETRY", number) for number in (1, 2)]
    assert [each.document["topic"] for each in found] == [f"{OWN}/telemetry"] * 2
    assert await count_stored(broker, ("TELEMETRY",)) == {"TELEMETRY": 2}
    assert BRIDGE_PASSWORD not in bridge.log


async def publish_as_device(url: str) -> None:
    with pytest.raises(Disconnected, match="Not authorized"):
        await connect(url, "wrong")
    for topic in (f"{OWN}/telemetry", *FORGED, f"{OWN}/telemetry"):
        # Mosquitto 2.0.11 ends the connection after a refusal.
        device = await connect(url, PASSWORD)
        refused = pytest.raises(NotPublished, match="Not authorized")
        with refused if topic in FORGED else contextlib.nullcontext():
            await device.publish(topic, b"{}", mark="")
        device.close()


async def connect(url: str, password: str, client_id: str = "t1/d1") -> MqttConnection:
    settings = BrokerSettings.model_validate(
        {"url": url, "username": "t1/d1", "password": password}
    )
    return await MqttConnection.open(settings, client_id=client_id)


async def test_a_device_that_claims_the_bridge_s_client_id_takes_nothing_over(
    broker: Broker, mosquitto: ShippedMosquitto, bridge: HostProcess
) -> None:
    # With a new session, which would end the bridge's one, and by both versions of MQTT.
    assert await log_in(mosquitto.port, "t1/d1", PASSWORD, client_id=SESSION) == ACCEPTED
    thief = await connect(mosquitto.url, PASSWORD, client_id=SESSION)
    assert thief.is_open
    thief.close()
    async with await RawMqtt.open(mosquitto.port) as device:
        assert await device.connect(SESSION, "t1/d1", PASSWORD) == ACCEPTED
        await device.deliver(f"{OWN}/telemetry", b"{}")
    await wait_for_stored(broker, 1)

    assert bridge.log.count("The MQTT bridge is connected.") == 1
    assert "is not connected" not in bridge.log
    assert f"Client {SESSION} already connected" not in mosquitto.log


async def test_a_device_takes_no_other_device_s_queue(mosquitto: ShippedMosquitto) -> None:
    async with await RawMqtt.open(mosquitto.port) as device:
        assert await device.connect("t1/d2", "t1/d2", PASSWORD, flags=KEEPING) == ACCEPTED
        assert await device.subscribe("tenant/t1/device/d2/#") == 1
    await send_command(mosquitto, "d2", b"a command")

    # With a new session the queue would be gone.
    assert await log_in(mosquitto.port, "t1/d1", PASSWORD, client_id="t1/d2") == ACCEPTED
    async with await RawMqtt.open(mosquitto.port) as thief:
        assert await thief.connect("t1/d2", "t1/d1", PASSWORD, flags=KEEPING) == ACCEPTED
        await thief.subscribe("tenant/t1/device/d2/#")
        await thief.ping()

    # The rights of a session without its client hold over a restart, too.
    await asyncio.to_thread(mosquitto.stop)
    await asyncio.to_thread(mosquitto.start)
    async with await RawMqtt.open(mosquitto.port) as device:
        assert await device.connect("t1/d2", "t1/d2", PASSWORD, flags=KEEPING) == ACCEPTED
        first, body = await device.read()
    assert (first & 0xF0, body.endswith(b"a command")) == (0x30, True)


async def send_command(mosquitto: ShippedMosquitto, device: str, payload: bytes) -> None:
    async with await RawMqtt.open(mosquitto.bridge_port) as downlink:
        assert await downlink.connect("downlink", "bridge", BRIDGE_PASSWORD) == ACCEPTED
        await downlink.deliver(f"tenant/t1/device/{device}/commands", payload)


async def test_what_waits_for_the_bridge_outlives_the_broker(
    broker: Broker, mosquitto: ShippedMosquitto, bridge: HostProcess
) -> None:
    await bridge.stop()
    # The broker knows the session and its rights from its file only.
    await asyncio.to_thread(mosquitto.stop)
    await asyncio.to_thread(mosquitto.start)
    async with await RawMqtt.open(mosquitto.port) as device:
        assert await device.connect("t1/d1", "t1/d1", PASSWORD) == ACCEPTED
        await device.deliver(f"{OWN}/telemetry", b"{}")
    await bridge.start()

    await wait_for_stored(broker, 1)


async def test_what_a_device_may_not_make_the_broker_keep_ends_its_connection(
    mosquitto: ShippedMosquitto,
) -> None:
    for topic, payload, retain in (
        (f"{OWN}/telemetry", b"x" * 1_200_000, False),
        (f"{OWN}/shadow/name/n/update", b"{}", True),
    ):
        async with await RawMqtt.open(mosquitto.port) as device:
            assert await device.connect("t1/d1", "t1/d1", PASSWORD) == ACCEPTED
            with contextlib.suppress(OSError):
                await device.publish(topic, payload, retain=retain)
            await device.wait_for_end()


async def test_a_device_fills_no_queue_of_its_own(mosquitto: ShippedMosquitto) -> None:
    async with await RawMqtt.open(mosquitto.port) as device:
        assert await device.connect("t1/d1", "t1/d1", PASSWORD) == ACCEPTED
        assert await device.subscribe(f"{OWN}/#") == 1
        await device.publish(f"{OWN}/telemetry", b"own")
        await send_command(mosquitto, "d1", b"a command")
        first, body = await device.read()
    assert (first & 0xF0, body.endswith(b"a command")) == (0x30, True)
