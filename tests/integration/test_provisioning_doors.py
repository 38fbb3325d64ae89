"""Provisioning over HTTP and MQTT, in a host with the shipped manifests."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from runtime import manifest
from runtime.broker.connection import Broker
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT, read_blocks
from tests.support.gateway import ADMIN, REGISTRATION_KEY, Gateway, run_gateway
from tests.support.host import eventually
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

_MANIFESTS = ROOT / "manifests"
_NAMES = ("management", "telemetry", "messaging", "device_auth", "shadow", "commands")
TENANT = "/api/v1/tenants/test"
CLAIM = "/provision/v1/claim"
CSV = {"Content-Type": "text/csv; charset=utf-8"}
REFUSED = "Not authorized"


@pytest.fixture
async def gateway(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str
) -> AsyncIterator[Gateway]:
    declared = manifest.read(
        [_MANIFESTS / f"{name}.yaml" for name in _NAMES],
        {"NATS_AUTH_ISSUER": nats_server.issuer.seed},
    )
    quick = declared.functions["erase_tenants"].model_copy(update={"settings": {"settle_s": 0.5}})
    declared = declared.model_copy(
        update={"functions": {**declared.functions, "erase_tenants": quick}}
    )
    addresses = Addresses(nats_server.url, postgres_dsn, nats_server.system_url)
    options = HostOptions(registration_key=REGISTRATION_KEY)
    host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), options)
    await host.start()
    async with run_gateway(broker, require_token=True, token_cache_s=300) as running:
        await ask(running.client, "POST", "/api/v1/tenants", 201, tenant_id="test")
        yield running
    await host.drain(10.0)
    names = (await broker.api("STREAM.NAMES", {}))["streams"]
    for name in names:
        if not name.startswith("$"):
            await broker.api(f"STREAM.DELETE.{name}")


async def ask(http: httpx.AsyncClient, method: str, path: str, status: int, **body: Any) -> Any:
    response = await http.request(method, path, json=body or None, headers=ADMIN)
    assert response.status_code == status, response.text
    return response.json()


async def send(gateway: Gateway, content: bytes, headers: dict[str, str], query: str = "") -> Any:
    response = await gateway.client.post(
        f"{TENANT}/devices/import{query}", content=content, headers={**ADMIN, **headers}
    )
    return response.status_code, response.json()


async def test_a_file_is_the_body_of_a_request(gateway: Gateway) -> None:
    content = 'device_id,site_id\nd.1,"Füße, ""1"""\nwrong id,s\n'.encode()
    status, dry = await send(gateway, content, CSV, "?dry_run=true&first_line=5")
    assert (status, dry["registered"], dry["tokens"]) == (200, 1, {})
    assert [row["line"] for row in dry["refused"]] == [7]
    status, report = await send(gateway, content, CSV)
    assert (status, report["registered"], list(report["tokens"])) == (200, 1, ["d.1"])
    shown = await ask(gateway.client, "GET", f"{TENANT}/devices/d.1", 200)
    assert shown["site_id"] == 'Füße, "1"'
    lines = b'{"device_id": "d.1", "site_id": "F\xc3\xbc\xc3\x9fe, \\"1\\""}\n'
    status, report = await send(gateway, lines, {"Content-Type": "application/x-ndjson"})
    assert (status, report["existing"]) == (200, 1)
    as_json = {"format": "csv", "content": "device_id,site_id\nd.2,s\n"}
    report = await ask(gateway.client, "POST", f"{TENANT}/devices/import", 200, **as_json)
    assert report["registered"] == 1


async def test_a_file_that_cannot_be_taken_is_refused(gateway: Gateway) -> None:
    packed = gzip.compress(b"device_id,site_id\n")
    for content, headers, status, code in (
        (b"device_id,site_id\n\xff,s\n", CSV, 400, "MALFORMED_BODY"),
        (packed, {**CSV, "Content-Encoding": "gzip"}, 415, "UNSUPPORTED_CONTENT_ENCODING"),
        (b"a,b\n", CSV, 422, "FILE_INVALID"),
        (b"", CSV, 422, "FILE_INVALID"),
        (b"d" * 1_000_001, CSV, 413, "BODY_TOO_LARGE"),
        (b"d", {"Content-Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
    ):
        answered, problem = await send(gateway, content, headers)
        assert answered == status, problem
        assert problem["code"] == code
    response = await gateway.client.post(
        f"{TENANT}/devices", content=b"device_id\nd\n", headers={**ADMIN, **CSV}
    )
    assert response.status_code == 415
    openapi = (await gateway.client.get("/openapi.json")).json()
    operation = openapi["paths"]["/api/v1/tenants/{tenant_id}/devices/import"]["post"]
    assert {"application/json", "text/csv", "application/x-ndjson"} == set(
        operation["requestBody"]["content"]
    )


async def claim(gateway: Gateway, code: str, **body: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {code}"}
    response = await gateway.client.post(CLAIM, json=body, headers=headers)
    return response.status_code, response.json()


async def test_a_device_claims_its_token_and_connects_by_both_doors(
    gateway: Gateway, nats_server: NatsServer
) -> None:
    made = await ask(gateway.client, "POST", f"{TENANT}/claim-codes", 201, site_id="roof")
    assert (await gateway.client.post(CLAIM, json={})).status_code == 401
    status, claimed = await claim(gateway, made["code"], device_id="d1")
    assert status == 201, claimed
    token = claimed["provision_token"]
    assert claimed["site_id"] == "roof"
    response = await gateway.client.post(
        "/ingest/v1/tenant/test/device/d1/telemetry",
        json={"site_id": "roof", "metrics": {"temp": 1}},
        headers={"X-Provision-Token": token},
    )
    assert response.status_code == 202, response.text
    assert await connect(nats_server, token, "d1") == "Success"
    status, problem = await claim(gateway, made["code"], device_id="d2")
    assert (status, problem["code"]) == (409, "CLAIM_CODE_USED")


async def test_guessing_claim_codes_is_limited(gateway: Gateway) -> None:
    guesses = [await claim(gateway, f"0000-0000-0000-{n:04}", device_id="d") for n in range(15)]
    statuses = [status for status, _ in guesses]
    assert statuses[:10] == [403] * 10
    assert statuses[-1] == 429
    assert await count_devices(gateway) == 0


async def count_devices(gateway: Gateway) -> int:
    return len((await ask(gateway.client, "GET", f"{TENANT}/devices", 200))["items"])


async def connect(server: NatsServer, token: str, device: str) -> str:
    name = f"test/{device}"

    def attempt() -> str:
        with MqttSession(server.mqtt_port, name, token, client_id=name) as session:
            return session.connected

    return await asyncio.to_thread(attempt)


async def test_a_tenant_that_is_being_erased_is_refused_by_every_door(
    gateway: Gateway, nats_server: NatsServer, broker: Broker
) -> None:
    http = gateway.client
    device = await ask(http, "POST", f"{TENANT}/devices", 201, device_id="d1", site_id="s")
    made = await ask(http, "POST", f"{TENANT}/claim-codes", 201, site_id="s")
    key = await ask(http, "POST", f"{TENANT}/keys", 201)
    token, path = device["provision_token"], "/ingest/v1/tenant/test/device/d1/telemetry"
    reading = {"site_id": "s", "provision_token": token, "metrics": {"temp": 1}}
    assert (await http.post(path, json=reading)).status_code == 202
    headers = {"Authorization": f"Bearer {key['key']}"}
    query = f"{TENANT}/telemetry/buckets?sensor=temp"
    assert (await http.get(query, headers=headers)).status_code == 200
    session = MqttSession(
        nats_server.mqtt_port, "test/d1", token, client_id="test/d1", keeps_session=True
    )
    with ExitStack() as sessions:
        # The answer to CONNECT comes from this loop.
        await asyncio.to_thread(sessions.enter_context, session)
        assert session.connected == "Success"
        session.subscribe("tenant/test/device/d1/commands")
        assert "tenant.test" in json.dumps(await broker.api("CONSUMER.LIST.$MQTT_msgs"))
        session.publish("tenant/test/device/d1/telemetry", json.dumps(reading))
        erasure = await ask(http, "POST", f"{TENANT}/erasure", 202, confirm="test")
        assert erasure["status"] == "running"

        # The gateway's caches alone would serve both for five minutes.
        async def are_refused() -> bool:
            sent = await http.post(path, json=reading)
            read = await http.get(query, headers=headers)
            return (sent.status_code, read.status_code) == (403, 403)

        await eventually(are_refused, "the refusal of device and key")
        status, problem = await claim(gateway, made["code"], device_id="d2")
        assert (status, problem["code"]) == (409, "TENANT_BEING_ERASED")
        assert await asyncio.to_thread(session.ended.wait, 60)
    assert await connect(nats_server, token, "d1") == REFUSED

    async def is_done() -> Any:
        shown = await ask(http, "GET", f"{TENANT}/erasure", 200)
        return shown if shown["status"] == "done" else None

    done = await eventually(is_done, "the end of the erasure")
    assert done["deleted_rows"]["device_registry"] == 1
    assert (await http.get(TENANT, headers=ADMIN)).status_code == 404
    messages = await broker.api("STREAM.INFO.TELEMETRY")
    assert messages["state"]["messages"] == 0
    assert "tenant.test" not in json.dumps(await broker.api("CONSUMER.LIST.$MQTT_msgs"))
    records = await broker.api("STREAM.INFO.$MQTT_sess", {"subjects_filter": ">"})
    for subject in records["state"].get("subjects") or {}:
        asked = {"last_by_subj": subject}
        stored = await broker.api("STREAM.MSG.GET.$MQTT_sess", asked)
        assert "test/d1" not in json.dumps(stored)


async def test_the_examples_of_the_documentation_work(gateway: Gateway) -> None:
    http = gateway.client
    await ask(http, "POST", f"{TENANT}/devices", 201, device_id="dev1", site_id="s")
    blocks = read_blocks(ROOT / "docs" / "provisioning.md")
    answers: list[Any] = []
    for text in (block.text for block in blocks if block.language == "http"):
        line, _, rest = text.partition("\n")
        method, path = line.split()
        head, _, body = rest.rpartition("\n\n") if "\n\n" in rest else ("", "", rest)
        headers = dict(field.split(": ", 1) for field in head.splitlines())
        if CLAIM in path:
            headers["Authorization"] = f"Bearer {answers[1]['code']}"
        response = await http.request(
            method,
            path,
            content=body.encode(),
            headers={**ADMIN, "Content-Type": "application/json", **headers},
        )
        assert response.status_code in {200, 201, 202}, response.text
        answers.append(response.json())
    shown = [json.loads(block.text) for block in blocks if block.language == "json"]
    assert answers[0] == shown[0]
    assert set(answers[3]) == set(shown[1])
    assert set(answers[-1]) == set(shown[2])
