"""The shipped manifests in a host: management by HTTP together with a device by MQTT."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from runtime import RequestFailed, manifest
from runtime.broker.connection import Broker
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT, read_blocks
from tests.support.gateway import ADMIN, JSON, REGISTRATION_KEY, run_gateway
from tests.support.host import eventually
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer
from tests.support.strange_requests import StrangeRequests

_MANIFESTS = ROOT / "manifests"
_NAMES = ("management", "telemetry", "routes", "shadow", "commands", "presence", "unmapped")
TENANT = "/api/v1/tenants/test"
DEVICE = f"{TENANT}/devices/dev.1"
TOPIC = "tenant/test/device/dev.1"


@pytest.fixture
async def http(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str
) -> AsyncIterator[httpx.AsyncClient]:
    declared = manifest.read(
        [_MANIFESTS / f"{name}.yaml" for name in _NAMES],
        {"DEVICE_TOKEN_MIN_LENGTH": "3", "SECRETS_KEYS": "s" * 32},
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


async def test_a_repeated_command_is_the_same_by_http_and_by_nats(
    http: httpx.AsyncClient, broker: Broker
) -> None:
    await register(http)
    wanted = {"command_id": "c1", "name": "reboot", "timeout_s": 60}
    first = await ask(http, "POST", f"{DEVICE}/commands", 201, **wanted)
    assert await ask(http, "POST", f"{DEVICE}/commands", 201, **wanted) == first

    refused = await ask(http, "POST", f"{DEVICE}/commands", 409, **{**wanted, "timeout_s": 61})
    assert refused["code"] == "COMMAND_EXISTS"
    assert "timeout_s" in refused["detail"]
    device = {"tenant_id": "test", "device_id": "dev.1"}
    for timeout_s in (60, 61):
        question = json.dumps({**device, **wanted, "timeout_s": timeout_s}).encode()
        reply = broker.request("management.commands.create", question, timeout_s=30)
        if timeout_s == 60:
            assert json.loads((await reply).data) == first
            continue
        with pytest.raises(RequestFailed) as by_nats:
            await reply
        assert by_nats.value.code == 409
        assert json.loads(by_nats.value.body)["detail"] == refused["detail"]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
async def test_no_request_makes_an_operation_fail(http: httpx.AsyncClient, seed: int) -> None:
    await register(http)
    document = (await http.get("/openapi.json")).json()
    requests = StrangeRequests(document, seed, "test")
    statuses: Counter[int] = Counter()
    for method, path, body in requests.make(1_000):
        answer = await http.request(method, path, content=body, headers=JSON)
        statuses[answer.status_code] += 1
        assert answer.status_code not in {500, 502}, (method, path, body, answer.text)
        if answer.content:
            requests.learn(answer.json())
    # Enough of them reach what is behind the checks of their form.
    assert statuses[200] + statuses[201] > 100, statuses


async def test_a_device_is_told_and_answers(
    http: httpx.AsyncClient, nats_server: NatsServer
) -> None:
    await register(http)
    credentials = (nats_server.mqtt_user, nats_server.mqtt_password)
    with MqttSession(nats_server.mqtt_port, *credentials) as device:
        device.subscribe(f"{TOPIC}/commands")
        made = await ask(http, "POST", f"{DEVICE}/commands", 201, name="reboot")
        message = await asyncio.to_thread(device.received.get, timeout=60)
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
    assert (await ask(http, "GET", "/api/v1/quarantine-counts", 200))["items"] == []
    for path in ("/api/v1/message-books", f"{TENANT}/message-books"):
        assert (await ask(http, "GET", path, 200))["is_balanced"] is True
    again = await ask(http, "POST", "/api/v1/quarantine-replays", 201, reason="X")
    replay = f"/api/v1/quarantine-replays/{again['replay_id']}"
    await ask(http, "GET", replay, 200)
    await ask(http, "POST", f"{replay}/cancel", 200)
    assert len((await ask(http, "GET", "/api/v1/quarantine-replays", 200))["items"]) == 1
    gone = await ask(http, "POST", "/api/v1/quarantine/7/replay", 404)
    assert gone["code"] == "QUARANTINE_NOT_FOUND"


async def test_a_device_that_sends_is_online_and_its_routes_are_told(
    http: httpx.AsyncClient, broker: Broker, postgres_dsn: str
) -> None:
    await register(http)
    route = {
        "name": "came online",
        "topic_filter": "tenant/test/device/+/presence",
        "payload_filter": "payload.status == 'online'",
        "destination_type": "poll",
        "destination_config": {},
    }
    await ask(http, "POST", f"{TENANT}/routes", 201, **route)
    assert (await ask(http, "GET", DEVICE, 200))["presence"] == "never_seen"
    # Until the function that watches has begun, nobody notes that a device was seen.
    connection = await asyncpg.connect(postgres_dsn)

    async def is_watched() -> bool:
        found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM presence_watch)")
        return found

    await eventually(is_watched, "the watch")
    body = {"site_id": "s1", "provision_token": "tok", "metrics": {"temp": 21.5}}
    await broker.publish("telemetry.test.d//1", b"no JSON", msg_id=None)
    await broker.publish("telemetry.test.dev//1", json.dumps(body).encode(), msg_id=None)

    async def is_online() -> Any:
        return (await ask(http, "GET", f"{TENANT}/devices?presence=online", 200))["items"]

    [device] = await eventually(is_online, "the device online")
    assert device["device_id"] == "dev.1"
    assert device["last_seen_at"] == device["presence_since"]
    shown = await ask(http, "GET", f"{DEVICE}/presence", 200)
    assert [(each["status"], each["reason"]) for each in shown["changes"]] == [("online", "seen")]

    async def job() -> Any:
        return await connection.fetchval(
            "SELECT job_id FROM delivery_jobs WHERE job_id LIKE 'presence-%'"
        )

    await eventually(job, "the job of the route")
    await connection.close()


async def test_a_refused_message_is_replayed_when_its_cause_is_mended(
    http: httpx.AsyncClient, broker: Broker
) -> None:
    await ask(http, "POST", "/api/v1/tenants", 201, tenant_id="test")
    body = {"site_id": "s1", "provision_token": "tok", "metrics": {"temp": 21.5}}
    await broker.publish("telemetry.test.late", json.dumps(body).encode(), msg_id=None)

    async def refused() -> Any:
        return (await ask(http, "GET", "/api/v1/quarantine?tenant_id=test", 200))["items"]

    [message] = await eventually(refused, "the refused message")
    assert (message["reason"], message["status"]) == ("UNREGISTERED_DEVICE", "quarantined")
    counts = await ask(http, "GET", "/api/v1/quarantine-counts?reason=UNREGISTERED_DEVICE", 200)
    assert [each["quarantined"] for each in counts["items"]] == [1]
    device = {"device_id": "late", "site_id": "s1", "provision_token": "tok"}
    await ask(http, "POST", f"{TENANT}/devices", 201, **device)
    made = await ask(http, "POST", "/api/v1/quarantine-replays", 201, tenant_id="test")

    async def is_accepted() -> bool:
        shown = await ask(http, "GET", f"/api/v1/quarantine-replays/{made['replay_id']}", 200)
        return bool(shown["accepted"] == 1)

    await eventually(is_accepted, "the accepted message")
    row = await ask(http, "GET", f"{TENANT}/devices/late/telemetry/latest", 200)
    assert row["metrics"] == {"temp": 21.5}
    assert row["time"][:19] == message["stored_at"][:19]
    books = await ask(http, "GET", f"{TENANT}/message-books", 200)
    assert (books["received"], books["written"], books["quarantined"]) == (1, 1, 0)


async def test_a_device_reports_and_is_told_what_is_missing(
    http: httpx.AsyncClient, nats_server: NatsServer
) -> None:
    await register(http)
    credentials = (nats_server.mqtt_user, nats_server.mqtt_password)
    with MqttSession(nats_server.mqtt_port, *credentials) as device:
        device.subscribe(f"{TOPIC}/shadow/delta")
        state = {"desired": {"fan": True}}
        await ask(http, "PATCH", f"{DEVICE}/shadow", 200, state=state)
        message = await asyncio.to_thread(device.received.get, timeout=60)
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
    await find_faults_of_expressions(http)
    http.headers.pop("Authorization")
    assert (await http.get(f"{TENANT}/devices")).status_code == 401


async def find_faults_of_expressions(http: httpx.AsyncClient) -> None:
    """A route with a bad expression is refused with the place of its fault."""
    route = f"{TENANT}/routes/0b0e0f5c-9f6e-4f0c-8a53-2f5c3f3a7d11"
    wanted = {"name": "r", "topic_filter": "#", "destination_config": {}}
    bad = "metrics.temp > 1\n AND x"
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"{TENANT}/routes", {**wanted, "payload_filter": bad}),
        ("PATCH", route, {"payload_filter": bad}),
        ("PUT", f"{route}/delivery-options", {"order_by": bad}),
        ("PUT", f"{route}/delivery-options", {"transformation": {"fields": {"t": bad}}}),
    ]
    for method, path, body in requests:
        refusal = await ask(http, method, path, 422, **body)
        assert refusal["code"] == "PAYLOAD_INVALID"
        told = "line 2, column 2: unexpected 'AND'; expected an operator or the end"
        assert told in refusal["detail"]


async def test_the_examples_of_the_documentation_work(http: httpx.AsyncClient) -> None:
    blocks = read_blocks(ROOT / "docs" / "management-api.md")
    requests = [block.text for block in blocks if block.language == "http"]
    assert len(requests) >= 8
    for request in requests:
        line, _, body = request.partition("\n")
        method, path = line.split()
        response = await http.request(method, path, json=json.loads(body) if body.strip() else None)
        assert response.status_code in {200, 201}, response.text


async def test_the_openapi_document_shows_every_type_of_destination(
    http: httpx.AsyncClient,
) -> None:
    listed = await ask(http, "GET", "/api/v1/destination-types", 200)
    names = [kind["name"] for kind in listed["items"]]
    assert "webhook" in names
    document = (await http.get("/openapi.json")).json()
    body = document["paths"]["/api/v1/tenants/{tenant_id}/routes"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    forms = schema["properties"]["destination_config"]["anyOf"]
    assert [form["$ref"].rpartition(".")[2] for form in forms] == names
    webhook = document["components"]["schemas"]["config.webhook"]
    assert webhook["properties"]["secret"]["writeOnly"] is True
