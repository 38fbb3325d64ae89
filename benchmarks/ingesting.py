"""Compares the ingest function with a loop that only consumes, copies and acknowledges."""

import asyncio
import hashlib
from pathlib import Path

import asyncpg
import orjson

from benchmarks.consumption import STALL_S, Pace, publish_all, watch
from benchmarks.servers import ROOT, Servers, running
from benchmarks.table import Comparison
from runtime.broker.streams import ensure
from runtime.manifest import Manifest, read
from runtime.resource.postgres import migrate

STREAM, DURABLE = "TELEMETRY", "ingest-workers"
TENANT, TOKEN = "bench", "a-provision-token"
MESSAGES_PER_DEVICE = 20
"""The burst that a device may send, since all messages are stored within seconds."""
MESSAGES_PER_EVENT = 100
SENSORS = ("temperature", "humidity", "pressure", "battery")
BAR = 0.5
_ROUTES = """
streams: {ROUTES: {subjects: ["routes.>"], retention: workqueue}}
functions:
  hand_over_jobs:
    handler: functions.route_delivery.hand_over:hand_over_jobs
    service: true
    uses: [postgres]
    postgres_connections: 3
"""


async def measure(servers: Servers, messages: int, rounds: int) -> Comparison:
    """Measure ingest and bare loop alternately, with the shipped manifest and schema.

    Every message is valid and comes from a device with registered sensors. One in a hundred is an
    event, which a route accepts; its job is published before the round ends.
    """
    await migrate(servers.database_url, ["functions.domain.migrations"])
    await ensure(servers.broker, _manifest(servers))
    devices = [f"device-{number}" for number in range(messages // MESSAGES_PER_DEVICE)]
    await _register(servers, devices)
    await publish_all(
        servers.broker,
        [
            (_subject(devices[number % len(devices)], number), _payload(number))
            for number in range(messages)
        ],
    )
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(await _round(servers, "bare loop", messages))
        ours.append(await _round(servers, "ingest", messages))
    return Comparison("ingest, all of it", "bare loop", ours, theirs, BAR)


async def _round(servers: Servers, side: str, messages: int) -> Pace:
    await servers.broker.api(f"CONSUMER.DELETE.{STREAM}.{DURABLE}")
    await servers.broker.api("STREAM.DELETE.ROUTES")
    await ensure(servers.broker, _manifest(servers))
    await _execute(servers, "TRUNCATE telemetry, delivery_jobs, delivery_attempts, delivery_outbox")
    if side == "ingest":
        command = ["-m", "runtime", "serve", *(str(path) for path in _paths(servers))]
    else:
        command = ["-m", "benchmarks.bare_loop", STREAM, DURABLE]
    async with running(servers, command) as process:
        pace = await watch(servers.broker, STREAM, DURABLE, messages, process)
        if side == "ingest":
            await _wait_for_jobs(servers, -(-messages // MESSAGES_PER_EVENT))
    rows = await _execute(servers, "SELECT count(*) FROM telemetry")
    if rows != messages:
        raise RuntimeError(f"{side} made {rows} rows of {messages} messages")
    print(f"  {side}: {pace.per_s:,.0f}/s", flush=True)
    return pace


async def _wait_for_jobs(servers: Servers, jobs: int) -> None:
    async with asyncio.timeout(STALL_S):
        while True:
            info = await servers.broker.api("STREAM.INFO.ROUTES")
            if info["state"]["messages"] == jobs:
                return
            await asyncio.sleep(0.1)


def _paths(servers: Servers) -> list[Path]:
    routes = servers.directory / "routes.yaml"
    routes.write_text(_ROUTES, encoding="utf-8")
    return [ROOT / "manifests" / "telemetry.yaml", routes]


def _manifest(servers: Servers) -> Manifest:
    return read(_paths(servers), servers.environment)


def _subject(device: str, number: int) -> str:
    kind = "" if number % MESSAGES_PER_EVENT else ".event"
    return f"telemetry.{TENANT}.{device}{kind}"


def _payload(number: int) -> bytes:
    metrics = {sensor: number % 1000 / 10 + index for index, sensor in enumerate(SENSORS)}
    return orjson.dumps({"site_id": "s1", "provision_token": TOKEN, "metrics": metrics})


async def _register(servers: Servers, devices: list[str]) -> None:
    connection = await asyncpg.connect(servers.database_url)
    try:
        await connection.execute("INSERT INTO tenants (tenant_id) VALUES ($1)", TENANT)
        await connection.execute("INSERT INTO subscriptions (tenant_id) VALUES ($1)", TENANT)
        await connection.execute(
            "INSERT INTO device_registry (tenant_id, device_id, site_id, provision_token_hash)"
            " SELECT $1, unnest($2::text[]), 's1', $3",
            TENANT,
            devices,
            hashlib.sha256(TOKEN.encode()).digest(),
        )
        await connection.execute(
            "INSERT INTO device_sensors (tenant_id, device_id, sensor, first_seen_at)"
            " SELECT $1, device_id, sensor, now()"
            " FROM unnest($2::text[]) device_id, unnest($3::text[]) sensor",
            TENANT,
            devices,
            SENSORS,
        )
        await connection.execute(
            "INSERT INTO message_routes"
            " (tenant_id, name, topic_filter, destination_type, payload_filter)"
            " VALUES ($1, 'events', $2, 'nowhere', 'metrics.temperature >= 0.0')",
            TENANT,
            f"tenant/{TENANT}/device/+/event",
        )
    finally:
        await connection.close()


async def _execute(servers: Servers, statement: str) -> object:
    connection = await asyncpg.connect(servers.database_url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()
