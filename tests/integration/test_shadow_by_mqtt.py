"""The shipped manifests in a host: a device with its own credentials and its shadows, by MQTT."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from runtime import manifest
from runtime.broker.connection import Broker
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.message import Message
from runtime.observe.metrics import Metrics
from runtime.resource.postgres import open_pool
from tests.support.documentation import ROOT
from tests.support.gateway import ADMIN, REGISTRATION_KEY, run_gateway
from tests.support.ingest import TOKEN, register
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

_NAMES = ("telemetry", "routes", "shadow", "commands", "unmapped", "device_auth")
DEVICE = "/api/v1/tenants/test/devices/d.1"
TOPIC = "tenant/test/device/d.1/shadow"


@pytest.fixture
async def http(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str
) -> AsyncIterator[httpx.AsyncClient]:
    declared = manifest.read(
        [ROOT / "manifests" / f"{name}.yaml" for name in _NAMES],
        {"SECRETS_KEYS": "s" * 32, "NATS_AUTH_ISSUER": nats_server.issuer.seed},
    )
    addresses = Addresses(nats_server.url, postgres_dsn, nats_server.system_url)
    options = HostOptions(registration_key=REGISTRATION_KEY)
    host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), options)
    await host.start()
    pool = await open_pool(postgres_dsn, max_size=1)
    for device in ("d.1", "d2"):
        await register(pool, device=device)
    await pool.close()
    async with run_gateway(broker) as gateway:
        gateway.client.headers.update(ADMIN)
        yield gateway.client
    await host.drain(10.0)


@pytest.fixture
def sessions() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Device:
    """A device at the MQTT listener, subscribed to everything about its shadows."""

    def __init__(self, session: MqttSession) -> None:
        self._session = session

    async def ask(self, request: str, **content: Any) -> None:
        data = json.dumps({"provision_token": TOKEN, **content})
        await asyncio.to_thread(self._session.publish, f"{TOPIC}/{request}", data)

    async def hear(self) -> tuple[str, Any]:
        """The next message: the last levels of its topic, and its content."""
        message = await asyncio.to_thread(self._session.received.get, timeout=60)
        assert message.topic.startswith(f"{TOPIC}/")
        return message.topic.removeprefix(f"{TOPIC}/"), json.loads(message.payload)


@pytest.fixture
async def device(http: httpx.AsyncClient, nats_server: NatsServer, sessions: ExitStack) -> Device:
    session = MqttSession(nats_server.mqtt_port, "test/d.1", TOKEN, client_id="test/d//1")
    await asyncio.to_thread(sessions.enter_context, session)
    assert session.connected == "Success"
    assert (await asyncio.to_thread(session.subscribe, f"{TOPIC}/#")).startswith("Granted")
    return Device(session)


async def test_a_device_and_an_application_keep_a_shadow_in_step(
    http: httpx.AsyncClient, device: Device, broker: Broker
) -> None:
    changes: asyncio.Queue[Message] = asyncio.Queue()
    await broker.subscribe("tenant.*.device.*.shadow.update.documents", changes.put_nowait)
    await device.ask("get", clientToken="1")
    kind, body = await device.hear()
    assert (kind, body["code"], body["clientToken"]) == ("get/rejected", 404, "1")

    await device.ask("update", state={"reported": {"fan": 1}}, clientToken="2")
    heard = dict([await device.hear() for _ in range(2)])
    assert heard["update/accepted"]["clientToken"] == "2"
    assert heard["update/documents"]["current"]["state"] == {"reported": {"fan": 1}}

    state = {"state": {"desired": {"fan": 2}}, "client_token": "app"}
    assert (await http.patch(f"{DEVICE}/shadow", json=state)).status_code == 200
    heard = dict([await device.hear() for _ in range(3)])
    assert heard.keys() == {"update/accepted", "update/documents", "delta"}
    assert (heard["delta"]["state"], heard["delta"]["clientToken"]) == ({"fan": 2}, "app")

    await device.ask("reported", reported={"fan": 2}, version=1)
    kind, body = await device.hear()
    assert (kind, body["code"]) == ("update/rejected", 409)
    await device.ask("reported", reported={"fan": 2}, version=2)
    assert {(await device.hear())[0] for _ in range(2)} == {"update/accepted", "update/documents"}
    await device.ask("get", clientToken="3")
    kind, body = await device.hear()
    assert (kind, body["version"]) == ("get/accepted", 3)
    assert body["state"] == {"desired": {"fan": 2}, "reported": {"fan": 2}}
    shown = (await http.get(f"{DEVICE}/shadow")).json()
    assert (shown["version"], shown["state"]["delta"]) == (3, {})
    # An application that listens on NATS hears each change.
    versions = [
        json.loads((await asyncio.wait_for(changes.get(), 60)).data)["current"]["version"]
        for _ in range(3)
    ]
    assert versions == [1, 2, 3]


async def test_shadows_with_names_have_topics_of_their_own(
    http: httpx.AsyncClient, device: Device
) -> None:
    await device.ask("name/config/update", state={"reported": {"a": 1}})
    kinds = {(await device.hear())[0] for _ in range(2)}
    assert kinds == {"name/config/update/accepted", "name/config/update/documents"}
    state = {"state": {"desired": {"a": 2}}}
    changed = await http.patch(f"{DEVICE}/shadow?name=config", json=state)
    assert (changed.status_code, changed.json()["version"]) == (200, 2)
    kinds = {(await device.hear())[0] for _ in range(3)}
    assert "name/config/delta" in kinds
    assert (await http.get(f"{DEVICE}/shadow")).status_code == 404
    listed = (await http.get(f"{DEVICE}/shadows")).json()["items"]
    assert [(each["name"], each["version"]) for each in listed] == [("config", 2)]
    await device.ask("name/config/delete", version=2, clientToken="9")
    kind, body = await device.hear()
    assert kind == "name/config/delete/accepted"
    assert (body["version"], body["clientToken"]) == (3, "9")
    assert (await http.get(f"{DEVICE}/shadow?name=config")).status_code == 404
    refused = await http.patch(f"{DEVICE}/shadow?name=a.b", json=state)
    assert refused.status_code in {400, 422}
