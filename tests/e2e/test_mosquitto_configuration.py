"""deploy/mosquitto: the configuration starts, and its rights keep devices apart."""

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from functions.mqtt_bridge.connection import MqttConnection, NotPublished
from functions.mqtt_bridge.dialing import Disconnected
from functions.mqtt_bridge.session import MARK
from functions.mqtt_bridge.settings import BrokerSettings
from runtime.broker.connection import Broker
from tests.fault.hosts import HostProcess
from tests.support.documentation import ROOT
from tests.support.gateway import count_stored, read_stored
from tests.support.host import eventually
from tests.support.mosquitto import Mosquitto, mosquitto_hash
from tests.support.servers import NatsServer

pytestmark = pytest.mark.mosquitto

DEPLOY = ROOT / "deploy" / "mosquitto"
PASSWORD = "the password"
OWN = "tenant/t1/device/d1"
FORGED = (f"{OWN}/commands", "tenant/t1/device/d2/telemetry", f"{OWN}/shadow/delta")


class ShippedMosquitto(Mosquitto):
    """Runs the shipped configuration, with its files in the test's folder."""

    def configuration(self) -> str:
        users = "".join(f"{user}:{mosquitto_hash(PASSWORD)}\n" for user in ("bridge", "t1/d1"))
        (self._directory / "passwords").write_text(users)
        (self._directory / "acl").write_text((DEPLOY / "acl").read_text(encoding="utf-8"))
        text = (DEPLOY / "mosquitto.conf").read_text(encoding="utf-8")
        text = text.replace("listener 1883", f"listener {self.port}")
        text = re.sub("/etc/mosquitto/|/var/lib/mosquitto/", f"{self._directory}/", text)
        return f"{text}\nuser root\nlog_dest stderr\nlog_type all\n"


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
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


async def test_the_bridge_takes_what_is_the_device_s_and_nothing_that_it_forges(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None, tmp_path: Path
) -> None:
    environment = {
        "NATS_URL": nats_server.url,
        "MQTT_BRIDGE_URL": mosquitto.url,
        "MQTT_BRIDGE_USERNAME": "bridge",
        "MQTT_BRIDGE_PASSWORD": PASSWORD,
    }
    host = HostProcess("host", [DEPLOY / "bridge.yaml"], environment, tmp_path)
    try:
        await host.start()
        await host.wait_until_ready()

        async def is_connected() -> bool:
            return "The MQTT bridge is connected." in host.log

        await eventually(is_connected, "the bridge")
        await publish_as_device(mosquitto.url)

        async def has_come() -> bool:
            return (await count_stored(broker, ("TELEMETRY",))).get("TELEMETRY", 0) >= 2

        await eventually(has_come, "two messages")
        found = [await read_stored(broker, "TELEMETRY", number) for number in (1, 2)]
        assert [each.document["topic"] for each in found] == [f"{OWN}/telemetry"] * 2
        assert await count_stored(broker, ("TELEMETRY",)) == {"TELEMETRY": 2}
        assert PASSWORD not in host.log
    finally:
        await host.stop()


async def publish_as_device(url: str) -> None:
    with pytest.raises(Disconnected, match="Not authorized"):
        await connect(url, "wrong")
    for topic in (f"{OWN}/telemetry", *FORGED, f"{OWN}/telemetry"):
        # Mosquitto 2.0.11 ends the connection after a refusal.
        device = await connect(url, PASSWORD)
        refused = pytest.raises(NotPublished, match="Not authorized")
        with refused if topic in FORGED else contextlib.nullcontext():
            await device.publish(topic, b"{}", mark=MARK)
        device.close()


async def connect(url: str, password: str) -> MqttConnection:
    settings = BrokerSettings.model_validate(
        {"url": url, "username": "t1/d1", "password": password}
    )
    return await MqttConnection.open(settings, client_id="t1/d1")
