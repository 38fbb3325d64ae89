"""The shipped manifests in a host: management by HTTP together with a device by MQTT."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from runtime import manifest
from runtime.broker.connection import Broker
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT, read_blocks
from tests.support.gateway import ADMIN, REGISTRATION_KEY, run_gateway
from tests.support.host import eventually
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

_MANIFESTS = ROOT / "manifests"
_NAMES = ("management", "shadow", "commands", "unmapped")
TENANT = "/api/v1/tenants/test"
DEVICE = f"{TENANT}/devices/dev.1"
TOPIC = "tenant/test/device/dev.1"


@pytest.fixture
async def http(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str
) -> AsyncIterator[httpx.AsyncClient]:
    declared = manifest.read(
        [_MANIFESTS / f"{name}.yaml" for name in _NAMES], {"DEVICE_TOKEN_MIN_LENGTH": "3"}
    )
    addresses = Addresses(nats_server.url, postgres_dsn)
    options = HostOptions(registration_key=REGISTRATION_KEY)
    host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), options)
    await host.start()
    async with run_gateway(broker) as gateway:
        gateway.client.headers.update(ADMIN)
        yield gateway.client
    await host.drain(10.0)


async def ask(http: httpx.AsyncClient, method: str, path: str, status: int, **body: Any) -> Any:
    response = await http.request(method, path, json=body or None)
    assert response.status_code == status, response.text
    return response.json()


async def register(http: httpx.AsyncClient) -> None:
    await ask(http, "POST", "/api/v1/tenants", 201, tenant_id="test")
    device = {"device_id": "dev.1", "site_id": "s1", "provision_token": "tok"}
    await ask(http, "POST", f"{TENANT}/devices", 201, **device)


async def test_a_device_is_told_and_answers(
    http: httpx.AsyncClient, nats_server: NatsServer
) -> None:
    await register(http)
    credentials = (nats_server.mqtt_user, nats_server.mqtt_password)
    with MqttSession(nats_server.mqtt_port, *credentials) as device:
        device.subscribe(f"{TOPIC}/commands")
        made = await ask(http, "POST", f"{DEVICE}/commands", 201, name="reboot")
        message = await asyncio.to_thread(device.received.get, timeout=10)
        assert message.topic == f"{TOPIC}/commands"
        command_id = json.loads(message.payload)["command_id"]
        assert command_id == made["command_id"]
        answer = {"command_id": command_id, "status": "succeeded", "provision_token": "tok"}
        device.publish(f"{TOPIC}/commands/ack", json.dumps(answer))

        async def has_succeeded() -> bool:
            shown = await ask(http, "GET", f"{DEVICE}/commands/{command_id}", 200)
            return bool(shown["status"] == "succeeded")

        await eventually(has_succeeded, "the device's answer")
    assert (await ask(http, "GET", "/api/v1/quarantine", 200))["items"] == []


async def test_a_device_reports_and_is_told_what_is_missing(
    http: httpx.AsyncClient, nats_server: NatsServer
) -> None:
    await register(http)
    credentials = (nats_server.mqtt_user, nats_server.mqtt_password)
    with MqttSession(nats_server.mqtt_port, *credentials) as device:
        device.subscribe(f"{TOPIC}/shadow/delta")
        state = {"desired": {"fan": True}}
        await ask(http, "PATCH", f"{DEVICE}/shadow", 200, state=state)
        message = await asyncio.to_thread(device.received.get, timeout=10)
        assert json.loads(message.payload)["state"] == {"fan": True}
        report = {"reported": {"fan": True}, "provision_token": "tok"}
        device.publish(f"{TOPIC}/shadow/reported", json.dumps(report))

        async def has_reported() -> bool:
            shown = await ask(http, "GET", f"{DEVICE}/shadow", 200)
            return bool(shown["state"]["reported"] == {"fan": True})

        await eventually(has_reported, "the device's report")
    conflict = await ask(http, "PATCH", f"{DEVICE}/shadow", 409, state=state, version=1)
    assert conflict["code"] == "VERSION_CONFLICT"


async def test_queries_and_mistakes_come_through_http(http: httpx.AsyncClient) -> None:
    await register(http)
    page = await ask(http, "GET", f"{TENANT}/devices?limit=1", 200)
    assert [device["device_id"] for device in page["items"]] == ["dev.1"]
    span = "from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z"
    assert (await ask(http, "GET", f"{DEVICE}/telemetry?{span}", 200))["items"] == []
    missing = await ask(http, "GET", f"{DEVICE}/telemetry/latest", 404)
    assert missing["code"] == "TELEMETRY_NOT_FOUND"
    for query in ("limit=0", "limit=x", "cursor=%00", "unknown=1"):
        assert (await http.get(f"{TENANT}/devices?{query}")).status_code in {400, 422}
    token = {"device_id": "d2", "site_id": "s1", "provision_token": ["a secret token"]}
    refused = await http.post(f"{TENANT}/devices", json=token)
    assert refused.status_code in {400, 422}
    assert "a secret token" not in refused.text
    http.headers.pop("Authorization")
    assert (await http.get(f"{TENANT}/devices")).status_code == 401


async def test_the_examples_of_the_documentation_work(http: httpx.AsyncClient) -> None:
    blocks = read_blocks(ROOT / "docs" / "management-api.md")
    requests = [block.text for block in blocks if block.language == "http"]
    assert len(requests) == 5
    for request in requests:
        line, _, body = request.partition("\n")
        method, path = line.split()
        response = await http.request(method, path, json=json.loads(body))
        assert response.status_code in {200, 201}, response.text
