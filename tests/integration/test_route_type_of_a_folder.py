"""A type of destinations from a folder of its own: announced, configured, delivered, logged."""

import importlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from prometheus_client import generate_latest
from pydantic import SecretStr
from structlog.testing import capture_logs

from functions.domain.named_sql import read_queries
from functions.domain.secret_box import SecretsSettings
from functions.management import destination_types, routes
from functions.management.stored_destinations import NOT_DELIVERED, RouteSettings
from functions.route_delivery import DeliverySettings, Job, health_watch
from functions.route_delivery.sealing import seal_destinations
from runtime import Context, Event, Message, Retry
from runtime.broker.connection import Broker
from runtime.broker.streams import ensure
from runtime.context import Scope
from runtime.observe.metrics import Metrics
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.host import eventually, fresh, make_manifest, running_host, wait_for_letters
from tests.support.servers import NatsServer

HEALTH = read_queries(Path(health_watch.__file__).with_name("health.sql"))
KEY, NEW_KEY = "k" * 32, "n" * 32
TOKEN = "hush-hush-hush"
MODULE = """
from pydantic import BaseModel, SecretStr
from functions.route_delivery import DeliverySettings as Settings
from functions.route_delivery import EndpointKey, Job, Receipt, deliverer

class Destination(BaseModel):
    coop: str
    token: SecretStr

sent = []

async def open_coop(ctx):
    return sent

async def send(job: Job, destination: Destination, ctx) -> Receipt:
    ctx.state.append((job.job_id, destination.token.get_secret_value()))
    match destination.coop:
        case "full":
            return Receipt("refused", "COOP_FULL", "the coop is full", excerpt="no room")
        case "burning":
            token = destination.token.get_secret_value()
            raise RuntimeError(f"pigeon with {token} burnt")  # line 22
        case "far":
            import asyncio
            await asyncio.sleep(60)
        case "odd":
            return None
    return Receipt("delivered", status_code=1, excerpt="coo")

deliver, start, stop = deliverer("pigeon", Destination, send, start=open_coop)
"""


@dataclass
class Pigeons:
    """A host that delivers to the type `pigeon`."""

    api: Caller
    broker: Broker
    stream: str
    function: str
    metrics: Metrics
    sent: list[tuple[str, str]]

    async def add_route(self, coop: str) -> str:
        route = await self.api.ask(
            routes.create_route,
            tenant_id="test",
            name=fresh("route"),
            topic_filter="#",
            destination_type="pigeon",
            destination_config={"coop": coop, "token": TOKEN},
        )
        assert TOKEN not in route.model_dump_json()
        assert (route.secret, route.warning) == (None, None)
        return str(route.route_id)

    async def send(self, route_id: str) -> str:
        job_id = fresh("job")
        job = {
            "job_id": job_id,
            "route_id": route_id,
            "tenant_id": "test",
            "topic": "tenant/test/device/d/telemetry",
            "payload": {},
            "stored_at": "2026-08-01T12:00:00Z",
        }
        subject = f"{self.stream}.test.pigeon"
        await self.broker.publish(subject, json.dumps(job).encode(), msg_id=job_id)
        return job_id

    async def wait_for_attempts(self, job_id: str, count: int = 1) -> list[asyncpg.Record]:
        query = "SELECT * FROM delivery_attempts WHERE job_id = $1 ORDER BY attempt"

        async def look() -> list[asyncpg.Record] | None:
            found: list[asyncpg.Record] = await self.api.pool.fetch(query, job_id)
            return found if len(found) >= count else None

        return await eventually(look, f"{count} attempts")


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator["asyncpg.Pool[asyncpg.Record]"]:
    opened = await open_pool(postgres_dsn, max_size=4)
    await opened.execute("INSERT INTO tenants (tenant_id) VALUES ('test')")
    yield opened
    await opened.close()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the type's module, which lies in an empty folder."""
    name = fresh("pigeon")
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def spec_of(module: str, stream: str) -> dict[str, Any]:
    return {
        "handler": f"{module}:deliver",
        "consumer": {"stream": stream.upper(), "filter_subjects": [f"{stream}.*.pigeon"]},
        "retry": {"attempts": 2, "delay": "50ms"},
        "uses": ["postgres"],
        "settings": {"secrets_keys": KEY, "timeout_s": 0.5},
    }


def streams_of(stream: str) -> dict[str, Any]:
    return {stream.upper(): {"subjects": [f"{stream}.>"], "retention": "workqueue"}}


@pytest.fixture
async def pigeons(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    pool: "asyncpg.Pool[asyncpg.Record]",
    module: str,
) -> AsyncIterator[Pigeons]:
    name, stream = module, fresh("jobs")
    spec, streams = spec_of(name, stream), streams_of(stream)
    metrics = Metrics("0.0.0")
    host = running_host(
        nats_server.url,
        {name: spec},
        streams=streams,
        database_url=postgres_dsn,
        metrics=metrics,
    )
    async with host:
        api = Caller(pool, settings=RouteSettings(secrets_keys=SecretStr(KEY)))
        yield Pigeons(api, broker, stream, name, metrics, sys.modules[name].sent)


async def test_a_type_of_a_users_folder_is_announced_configured_delivered_and_counted(
    pigeons: Pigeons,
) -> None:
    listed = await pigeons.api.ask(destination_types.list_destination_types)
    [kind] = listed.items
    assert (kind.name, kind.is_delivered) == ("pigeon", True)
    assert kind.config_schema["properties"]["token"]["writeOnly"] is True

    job_id = await pigeons.send(await pigeons.add_route("home"))

    [attempt] = await pigeons.wait_for_attempts(job_id)
    assert (attempt["destination_type"], attempt["outcome"]) == ("pigeon", "delivered")
    assert (attempt["status_code"], attempt["response_excerpt"]) == (1, "coo")
    assert (job_id, TOKEN) in pigeons.sent
    # Another secret may be another endpoint: what is known of the old one is forgotten.
    endpoints = "SELECT endpoint FROM message_routes"

    async def linked() -> bool:
        return await pigeons.api.pool.fetchval(endpoints) is not None

    await eventually(linked, "the route's endpoint")
    identity = {"tenant_id": "test", "route_id": attempt["route_id"]}
    changed = {"coop": "home", "token": "another-token"}
    await pigeons.api.ask(routes.update_route, **identity, destination_config=changed)
    assert await pigeons.api.pool.fetchval(endpoints) is None

    async def counted() -> bool:
        text = generate_latest(pigeons.metrics.registry).decode()
        return f'function="{pigeons.function}"' in text and TOKEN not in text

    await eventually(counted, "metrics of the function")


async def test_what_send_says_becomes_attempts_and_dead_letters_without_the_secret(
    pigeons: Pigeons,
) -> None:
    expected = {
        "full": ("refused", "COOP_FULL", "COOP_FULL"),
        "burning": ("failed", "SEND_FAILED", "ATTEMPTS_EXHAUSTED"),
        "far": ("failed", "TIMEOUT", "ATTEMPTS_EXHAUSTED"),
        "odd": ("failed", "SEND_FAILED", "ATTEMPTS_EXHAUSTED"),
    }
    with capture_logs() as logs:
        jobs = {coop: await pigeons.send(await pigeons.add_route(coop)) for coop in expected}
        letters = await wait_for_letters(pigeons.broker, pigeons.function, len(expected))
    for coop, (outcome, code, _) in expected.items():
        found = await pigeons.wait_for_attempts(jobs[coop], 1 if outcome == "refused" else 2)
        assert {(each["outcome"], each["error_code"]) for each in found} == {(outcome, code)}
    assert sorted(letter.code for letter in letters) == sorted(
        letter for *_, letter in expected.values()
    )
    told = next(line for line in logs if "pigeon with *** burnt" in str(line.get("error")))
    assert told["error"].startswith("SendFailed: RuntimeError: ")
    assert told["where"].endswith(f"{pigeons.function}.py:22")
    everything = f"{logs}{letters}"
    assert TOKEN not in everything
    rows = await pigeons.api.pool.fetch("SELECT message_routes::text AS all FROM message_routes")
    assert all(TOKEN not in row["all"] for row in rows)


async def _seal(pool: "asyncpg.Pool[asyncpg.Record]", keys: str) -> list[Any]:
    settings = SecretsSettings(secrets_keys=SecretStr(keys) if keys else None)
    resources = {"postgres": pool}
    scope = Scope("seal", settings, None, resources, structlog.get_logger())  # type: ignore[arg-type]
    with capture_logs() as logs:
        await seal_destinations(Context(scope))
    return [(line["event"], line["routes"]) for line in logs]


async def test_secrets_in_clear_are_encrypted_delivered_and_encrypted_again_with_a_new_key(
    pigeons: Pigeons,
) -> None:
    pool = pigeons.api.pool
    route_id = str(
        await pool.fetchval(
            "INSERT INTO message_routes"
            " (tenant_id, name, topic_filter, destination_type, destination_config)"
            " VALUES ('test', 'old', '#', 'pigeon', $1::text::jsonb) RETURNING id",
            json.dumps({"coop": "home", "token": TOKEN}),
        )
    )
    await pigeons.wait_for_attempts(await pigeons.send(route_id))
    identity = {"tenant_id": "test", "route_id": route_id}
    shown = (await pigeons.api.ask(routes.get_route, **identity)).destination_config
    assert shown == {"coop": "home", "token": "***"}

    assert await _seal(pool, "") == []
    encrypted = ("Secrets of routes were encrypted with the first key", 1)
    assert await _seal(pool, KEY) == [encrypted]
    assert await _seal(pool, KEY) == []
    row = await pool.fetchrow("SELECT destination_config, destination_secrets FROM message_routes")
    assert row is not None
    assert json.loads(row["destination_config"]) == shown
    await pigeons.wait_for_attempts(await pigeons.send(route_id))
    assert [token for _, token in pigeons.sent] == [TOKEN, TOKEN]

    assert await _seal(pool, f"{NEW_KEY},{KEY}") == [encrypted]
    assert await _seal(pool, KEY) == [
        ("No key opens the secrets of routes; correct SECRETS_KEYS", 1)
    ]
    # The deliverer has the old key alone: its jobs wait.
    with capture_logs() as logs:
        waiting = await pigeons.send(route_id)

        async def told() -> bool:
            return any("cannot be decrypted" in line["event"] for line in logs)

        await eventually(told, "an error in the log")
    assert (await pigeons.api.ask(routes.get_route, **identity)).destination_config == shown
    refusal = await pigeons.api.refuse(
        routes.update_route, **identity, destination_config={"coop": "x", "token": "***"}
    )
    assert refusal == ("SECRETS_UNREADABLE", 503)
    await pool.execute("DELETE FROM message_routes WHERE id <> $1", route_id)
    query = "SELECT count(*) FROM delivery_attempts WHERE job_id = $1"
    assert await pool.fetchval(query, waiting) == 0


@pytest.mark.parametrize("keys", [KEY, f"{NEW_KEY},{KEY}"])
async def test_a_disabled_route_is_still_probed_when_its_secrets_are_encrypted_with_a_new_key(
    pool: "asyncpg.Pool[asyncpg.Record]", keys: str
) -> None:
    schema = {"type": "object", "properties": {"token": {"type": "string", "writeOnly": True}}}
    await pool.execute(
        "INSERT INTO destination_types (name, schema) VALUES ('pigeon', $1)", json.dumps(schema)
    )
    await pool.execute(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type,"
        " destination_config) VALUES ('test', 'r', '#', 'pigeon', $1::text::jsonb)",
        json.dumps({"token": TOKEN}),
    )
    if keys != KEY:
        await _seal(pool, KEY)
    await pool.execute(
        "UPDATE message_routes SET endpoint = 'e', is_enabled = FALSE,"
        " disabled_reason = 'ENDPOINT_FAILING'"
    )
    await pool.execute(
        "INSERT INTO endpoint_health (tenant_id, endpoint, disabled_at)"
        " VALUES ('test', 'e', now() - interval '2 days')"
    )
    [(_, encrypted)] = await _seal(pool, keys)
    assert encrypted == 1
    assert len(await pool.fetch(HEALTH["due_probes"], timedelta(days=1), 10)) == 1


async def test_which_types_a_route_may_have_is_a_setting(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    await pool.execute(
        "INSERT INTO destination_types (name, schema, last_seen_at)"
        """ VALUES ('gone', '{"type": "object"}', now() - interval '1 hour')"""
    )
    wanted = {"tenant_id": "test", "topic_filter": "#", "destination_config": {"coop": "x"}}
    api = Caller(pool)

    async def create(kind: str, accepted: str) -> routes.RouteWithSecret:
        api.settings = RouteSettings.model_validate({"secrets_keys": KEY, "accept_types": accepted})
        body = {**wanted, "destination_type": kind, "name": fresh("route")}
        if kind == "gone":
            body["destination_config"] = {}
        return await api.ask(routes.create_route, **body)

    assert (await create("gone", "announced")).warning == NOT_DELIVERED
    unknown = await create("pigeon", "any")
    assert unknown.warning == NOT_DELIVERED
    assert unknown.destination_config == {"coop": "***"}
    for accepted, kind, code in (
        ("announced", "pigeon", "DESTINATION_TYPE_UNKNOWN"),
        ("delivered", "pigeon", "DESTINATION_TYPE_UNKNOWN"),
        ("delivered", "gone", "DESTINATION_TYPE_NOT_DELIVERED"),
    ):
        api.settings = RouteSettings.model_validate({"accept_types": accepted})
        body = {**wanted, "destination_type": kind, "name": fresh("route")}
        assert await api.refuse(routes.create_route, **body) == (code, 422)


async def test_without_a_key_no_new_secret_is_accepted(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    api = Caller(pool, settings=RouteSettings(accept_types="any"))
    wanted = {"tenant_id": "test", "name": "r", "topic_filter": "#", "destination_type": "pigeon"}
    refusal = await api.refuse(routes.create_route, **wanted, destination_config={"token": TOKEN})
    assert refusal == ("SECRETS_KEY_MISSING", 503)
    assert (await api.ask(routes.create_route, **wanted, destination_config={})).secret is None


async def test_with_a_wrong_key_jobs_wait_and_with_the_right_one_they_are_delivered(
    pool: "asyncpg.Pool[asyncpg.Record]", module: str
) -> None:
    pigeon = importlib.import_module(module)
    api = Caller(pool, settings=RouteSettings(secrets_keys=SecretStr(KEY), accept_types="any"))
    for number in range(3):
        await api.ask(
            routes.create_route,
            tenant_id="test",
            name=f"r{number}",
            topic_filter="#",
            destination_type="pigeon",
            destination_config={"coop": "home", "token": TOKEN},
        )
    route_id = await pool.fetchval("SELECT id FROM message_routes LIMIT 1")
    job = Job(
        job_id="j1",
        route_id=str(route_id),
        tenant_id="test",
        topic="tenant/test/device/d/telemetry",
        payload={},
        stored_at=datetime(2026, 8, 1, tzinfo=UTC),
    )
    event = Event(Message("routes.test.pigeon", b"{}", stream="ROUTES"), job)

    for keys, told in ((NEW_KEY, 3), ("", 3), (f"{NEW_KEY},{KEY}", None)):
        settings = DeliverySettings(secrets_keys=SecretStr(keys) if keys else None)
        scope = Scope("pigeon", settings, None, {"postgres": pool}, structlog.get_logger())  # type: ignore[arg-type]
        with capture_logs() as logs:
            scope.state = await pigeon.start(Context(scope))
        assert [line.get("routes") for line in logs] == ([told] if told else [])
        with capture_logs() as logs:
            if told:
                with pytest.raises(Retry) as later:
                    await pigeon.deliver(event, Context(scope))
                assert (later.value.counts, later.value.delay_s) == (False, 60.0)
                with pytest.raises(Retry):
                    await pigeon.deliver(event, Context(scope))
                assert [line["route_id"] for line in logs] == [job.route_id]
            else:
                await pigeon.deliver(event, Context(scope))
        await pigeon.stop(Context(scope))
    assert pigeon.sent == [("j1", TOKEN)]
    assert await pool.fetchval("SELECT count(*) FROM delivery_attempts") == 1


async def test_a_job_of_a_type_that_nobody_delivers_waits_until_somebody_does(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    pool: "asyncpg.Pool[asyncpg.Record]",
    module: str,
) -> None:
    stream = fresh("jobs")
    await ensure(broker, make_manifest({}, streams_of(stream)))
    api = Caller(pool, settings=RouteSettings(secrets_keys=SecretStr(KEY), accept_types="any"))
    early = Pigeons(api, broker, stream, module, Metrics("0.0.0"), [])
    route = await api.ask(
        routes.create_route,
        tenant_id="test",
        name="early",
        topic_filter="#",
        destination_type="pigeon",
        destination_config={"coop": "home", "token": TOKEN},
    )
    assert route.warning == NOT_DELIVERED
    job_id = await early.send(str(route.route_id))

    functions = {module: spec_of(module, stream)}
    host = running_host(nats_server.url, functions, database_url=postgres_dsn)
    async with host:
        [attempt] = await early.wait_for_attempts(job_id)
    assert attempt["outcome"] == "delivered"
    identity = {"tenant_id": "test", "route_id": route.route_id}
    assert (await api.ask(routes.get_route, **identity)).warning is None
