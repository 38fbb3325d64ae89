"""The backbone behind a real Mosquitto: a device's reading becomes a row, a command comes back."""

import asyncio
import json
import queue
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from runtime.broker.connection import Broker
from tests.fault.hosts import HostProcess
from tests.fault.traffic import TOKEN, register_devices
from tests.support.host import eventually
from tests.support.mosquitto import Mosquitto
from tests.support.servers import NatsServer

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(300)]

MANIFESTS = [
    *(f"manifests/{name}.yaml" for name in ("commands", "routes", "telemetry")),
    "deploy/mosquitto",
]
DEVICE = "tenant/fault/device/dev1"
_WAIT_S = 60


class Device:
    """A device with a session at the broker, which connects now and then."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.received: queue.Queue[MQTTMessage] = queue.Queue()

    def __enter__(self) -> "Device":
        self._subscribed: queue.Queue[None] = queue.Queue()
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id="the device", clean_session=False
        )
        self._client.on_message = self._on_message
        self._client.on_subscribe = lambda *_: self._subscribed.put(None)
        self._client.on_connect = lambda client, *_: client.subscribe(f"{DEVICE}/commands", 1)
        self._client.connect("127.0.0.1", self._port)
        self._client.loop_start()
        self._subscribed.get(timeout=_WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, kind: str, content: dict[str, Any]) -> None:
        sent = self._client.publish(f"{DEVICE}/{kind}", json.dumps(content), 1)
        sent.wait_for_publish(_WAIT_S)

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self.received.put(message)


def send_readings(device: Device) -> None:
    reading = {"site_id": "s1", "metrics": {"n": 1}}
    with device:
        device.publish("telemetry", {**reading, "provision_token": TOKEN})
        device.publish("status", {**reading, "provision_token": TOKEN})
        device.publish("telemetry", {**reading, "provision_token": "wrong"})


def answer_command(device: Device) -> MQTTMessage:
    with device:
        message = device.received.get(timeout=_WAIT_S)
        command_id = json.loads(message.payload)["command_id"]
        answer = {"command_id": command_id, "status": "succeeded", "provision_token": TOKEN}
        device.publish("commands/ack", answer)
    return message


async def test_readings_become_rows_and_a_command_waits_for_the_device(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    await register_devices(postgres_dsn, "http://127.0.0.1:9", "whsec_" + "A" * 32)
    database = await asyncpg.connect(postgres_dsn)
    environment = {
        "NATS_URL": nats_server.url,
        "DATABASE_URL": postgres_dsn,
        "MQTT_BRIDGE_URL": mosquitto.url,
        "ADMIN_KEY": "k" * 16,
    }
    host = HostProcess("host", MANIFESTS, environment, tmp_path)

    async def status(wanted: str) -> bool:
        return bool(await database.fetchval("SELECT status FROM device_commands") == wanted)

    async def readings() -> bool:
        types = await database.fetch("SELECT msg_type FROM telemetry ORDER BY msg_type")
        refused = await database.fetch("SELECT reason FROM quarantine_events")
        return ([row[0] for row in types], [row[0] for row in refused]) == (
            ["status", "telemetry"],
            ["TOKEN_INVALID"],
        )

    try:
        await host.start()
        await host.wait_until_ready()

        async def is_connected() -> bool:
            return "The MQTT bridge is connected." in host.log

        await eventually(is_connected, "the bridge")
        device = Device(mosquitto.port)
        await asyncio.to_thread(send_readings, device)
        await eventually(readings, "two rows and a refusal")

        # The device is away now; the broker takes the command for its session.
        content = {"tenant_id": "fault", "device_id": "dev1", "name": "run"}
        await broker.request("management.commands.create", json.dumps(content).encode())
        await eventually(lambda: status("sent"), "the command handed over")
        message = await asyncio.to_thread(answer_command, device)
        assert (message.topic, message.qos) == (f"{DEVICE}/commands", 1)
        await eventually(lambda: status("succeeded"), "the answer")
        # The command itself came back to the bridge and is no message of a device.
        assert await readings()
    finally:
        await host.stop()
        await database.close()
