"""Devices get their shadows over HTTP, and send requests about them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from functions.shadow.endpoints import update_desired
from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.integration.test_gateway_certificates import HEADER, as_bytes, make_certificate
from tests.support.calls import Caller
from tests.support.gateway import (
    PROVE_DEVICES,
    Gateway,
    count_stored,
    make_streams,
    read_stored,
    run_gateway,
)
from tests.support.host import running_host
from tests.support.ingest import TOKEN, register
from tests.support.servers import NatsServer

DEVICE = "/ingest/v1/tenant/test/device/dev1"
AUTH = {"X-Provision-Token": TOKEN}
FUNCTIONS = {
    "prove_devices": PROVE_DEVICES,
    "get_shadow": {
        "handler": "functions.shadow.endpoints:get_shadow",
        "endpoint": {"service": "management", "subject": "management.shadows.get"},
        "uses": ["postgres"],
    },
}


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Any]:
    opened = await open_pool(postgres_dsn, max_size=2)
    await register(opened)
    await register(opened, device="dev2")
    yield opened
    await opened.close()


@asynccontextmanager
async def serving(
    nats_server: NatsServer,
    broker: Broker,
    dsn: str,
    functions: dict[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    chosen = {"require_token": True, **settings}
    async with (
        make_streams(broker),
        running_host(nats_server.url, functions or FUNCTIONS, database_url=dsn),
        run_gateway(broker, **chosen) as gateway,
    ):
        yield gateway


async def desire(pool: Any, value: int, name: str = "") -> None:
    class Settings:
        max_named = 10

    api = Caller(pool, settings=Settings())
    state = {"desired": {"fan": value}}
    await api.ask(update_desired, tenant_id="test", device_id="dev1", name=name, state=state)


async def test_a_device_gets_its_shadows(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        get = gateway.client.get
        missing = await get(f"{DEVICE}/shadow", headers=AUTH)
        assert (missing.status_code, missing.json()["code"]) == (404, "SHADOW_NOT_FOUND")
        await desire(pool, 1)
        # The last is also the last level of the path by which a device asks for its commands.
        for name in ("config", "commands"):
            await desire(pool, 2, name)
        for path, value, name in (
            ("shadow", 1, ""),
            ("shadow/name/config", 2, "config"),
            ("shadow/name/commands", 2, "commands"),
        ):
            answer = await get(f"{DEVICE}/{path}", headers=AUTH)
            assert answer.status_code == 200
            asked = await gateway.client.head(f"{DEVICE}/{path}", headers=AUTH)
            assert (asked.status_code, asked.content) == (200, b"")
            assert asked.headers["etag"] == answer.headers["etag"]
            document = answer.json()
            assert (document["name"], document["version"]) == (name, 1)
            assert document["state"] == {
                "desired": {"fan": value},
                "reported": {},
                "delta": {"fan": value},
            }
        assert await count_stored(broker) == {}


async def test_a_device_that_has_the_shadow_already_gets_no_second_copy(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    await desire(pool, 1)
    async with serving(nats_server, broker, postgres_dsn) as gateway:

        async def ask(known: str) -> tuple[int, str, bytes]:
            headers = {**AUTH, "If-None-Match": known}
            answer = await gateway.client.get(f"{DEVICE}/shadow", headers=headers)
            return answer.status_code, answer.headers["etag"], answer.content

        status, tag, body = await ask('"other"')
        assert (status, json.loads(body)["version"]) == (200, 1)
        for known in (tag, f"W/{tag}", f'"a", {tag}', "*"):
            assert await ask(known) == (304, tag, b"")
        await desire(pool, 2)
        status, changed, _ = await ask(tag)
        assert status == 200
        assert changed != tag


REFUSED: list[tuple[str, dict[str, str], int, str]] = [
    ("dev1/shadow", {}, 401, "TOKEN_MISSING"),
    ("dev1/shadow", {"X-Provision-Token": "guess"}, 403, "TOKEN_INVALID"),
    ("dev3/shadow", AUTH, 403, "TOKEN_INVALID"),
    ("dev1/shadow?name=config", AUTH, 400, "MALFORMED_QUERY"),
    ("dev1/shadow/name/", AUTH, 400, "BAD_TOPIC_FORMAT"),
    ("dev1/shadow/name/a.b", AUTH, 400, "BAD_TOPIC_FORMAT"),
    ("dev1/shadow/name/a%2Fb", AUTH, 400, "BAD_TOPIC_FORMAT"),
    ("dev1/shadow/name/n/get", AUTH, 405, "METHOD_NOT_ALLOWED"),
    ("dev1/x/shadow", AUTH, 405, "METHOD_NOT_ALLOWED"),
    ("%2E%2E/shadow", AUTH, 400, "BAD_TOPIC_FORMAT"),
    ("dev1/shadow/reported", AUTH, 405, "METHOD_NOT_ALLOWED"),
]


async def test_nobody_else_gets_a_shadow_and_no_other_path_is_one(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    await desire(pool, 1)
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        for path, headers, status, code in REFUSED:
            url = f"/ingest/v1/tenant/test/device/{path}"
            answer = await gateway.client.get(url, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code), path
            assert "fan" not in answer.text


async def test_a_certificate_proves_the_device_that_asks(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    await desire(pool, 1)
    certificate = make_certificate()
    await pool.execute(
        "INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, not_after)"
        " VALUES ('test', 'dev1', $1, now() + interval '1 hour')",
        certificate.fingerprint(hashes.SHA256()).hex(),
    )
    trusted: dict[str, Any] = {
        "trusted_proxies": "127.0.0.0/8",
        "client_certificate_header": HEADER,
    }
    async with serving(nats_server, broker, postgres_dsn, **trusted) as gateway:
        headers = {HEADER: as_bytes(certificate)}
        answer = await gateway.client.get(f"{DEVICE}/shadow", headers=headers)
    assert answer.status_code == 200


async def test_questions_have_the_rate_of_the_device(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    slow: dict[str, Any] = {"device_rate_per_s": 0.01, "device_burst": 2}
    async with serving(nats_server, broker, postgres_dsn, **slow) as gateway:
        codes = [
            (await gateway.client.get(f"{DEVICE}/shadow", headers=AUTH)).status_code
            for _ in range(3)
        ]
    assert codes == [404, 404, 429]


async def test_while_nobody_answers_a_device_is_asked_to_come_again(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    alone: dict[str, Any] = {"prove_devices": PROVE_DEVICES}
    async with serving(nats_server, broker, postgres_dsn, alone) as gateway:
        answer = await gateway.client.get(f"{DEVICE}/shadow", headers=AUTH)
    assert (answer.status_code, answer.json()["code"]) == (503, "SHADOW_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_gateway_that_checks_no_tokens_shows_no_shadow(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    async with serving(nats_server, broker, postgres_dsn, require_token=False) as gateway:
        answer = await gateway.client.get(f"{DEVICE}/shadow", headers=AUTH)
    assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")


@pytest.mark.parametrize("form", ["shadow", "shadow/name/config"])
async def test_requests_are_stored_for_the_function_that_answers(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any, form: str
) -> None:
    async with serving(nats_server, broker, postgres_dsn) as gateway:
        for request in ("reported", "update", "delete", "get"):
            url = f"{DEVICE}/{form}/{request}"
            answer = await gateway.client.post(url, headers=AUTH, json={})
            assert (answer.status_code, answer.json()["stream"]) == (202, "SHADOW")
            sequence = answer.json()["sequence"]
            stored = await read_stored(broker, "SHADOW", sequence)
            assert stored.subject == "shadow.test"
            assert stored.document["topic"] == f"tenant/test/device/dev1/{form}/{request}"
        for answer_kind in ("delta", "update/accepted", "get/rejected", "update/documents"):
            url = f"{DEVICE}/{form}/{answer_kind}"
            refused = await gateway.client.post(url, headers=AUTH, json={})
            assert (refused.status_code, refused.json()["code"]) == (400, "BAD_TOPIC_FORMAT")
        assert await count_stored(broker) == {"SHADOW": 4}


async def test_a_device_reads_as_often_and_a_tenant_as_much_as_it_may(
    nats_server: NatsServer, broker: Broker, postgres_dsn: str, pool: Any
) -> None:
    await desire(pool, 1)
    await register(pool, tenant="other")
    rates: dict[str, Any] = {"shadow_rate_per_s": 0.001, "shadow_burst": 2}
    async with serving(nats_server, broker, postgres_dsn, **rates) as gateway:
        answers = [await gateway.client.get(f"{DEVICE}/shadow", headers=AUTH) for _ in range(2)]
        report = {"reported": {"a": 1}}
        answers.append(
            await gateway.client.post(f"{DEVICE}/shadow/reported", json=report, headers=AUTH)
        )
        # What else it sends is not concerned.
        kept = await gateway.client.post(f"{DEVICE}/telemetry", json={}, headers=AUTH)
        other = await gateway.client.get(DEVICE.replace("dev1", "dev2") + "/shadow", headers=AUTH)
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert (answers[2].json()["code"], other.status_code) == ("RATE_LIMITED", 404)
    assert "retry-after" in answers[2].headers
    assert kept.status_code == 202

    # One document of some hundred bytes uses up a tenant's kilobyte.
    rates = {"tenant_shadow_bytes_per_s": 1, "tenant_shadow_burst_bytes": 1000}
    places = (DEVICE, DEVICE.replace("dev1", "dev2"), DEVICE.replace("test", "other"))
    async with serving(nats_server, broker, postgres_dsn, **rates) as gateway:
        found = [await gateway.client.get(f"{each}/shadow", headers=AUTH) for each in places]
    assert [each.status_code for each in found] == [200, 429, 404]
    assert found[1].json()["code"] == "TENANT_RATE_LIMITED"
