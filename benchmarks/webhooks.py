"""Compares webhook delivery with a bare aiohttp loop, on the same receiver.

Ours is all of it: job from JetStream, route from PostgreSQL, guard, signature, POST, attempt log
committed, job acknowledged.
"""

import asyncio
import json
import socket
import sys
from pathlib import Path
from statistics import median

import asyncpg

from benchmarks.consumption import STALL_S, Pace, publish_all, watch
from benchmarks.servers import ROOT, Servers, clean_environment, free_port, running
from benchmarks.table import Comparison
from runtime.broker.streams import ensure
from runtime.manifest import Manifest, read
from runtime.resource.postgres import migrate

STREAM, DURABLE = "ROUTES", "route-delivery"
TENANT = "webhooks"
IN_FLIGHT = 64
BAR = 0.5
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of the standard's test vector
_JOB = {
    "tenant_id": TENANT,
    "device_id": "device-1",
    "topic": f"tenant/{TENANT}/device/device-1/telemetry",
    "msg_type": "telemetry",
    "payload": {"metrics": {"temperature": 21.5, "humidity": 40, "pressure": 1013.2}},
    "stored_at": "2026-08-01T12:00:00.123456Z",
}
_BODY_BYTES = 256
_DELIVERED = "SELECT count(*) FROM delivery_jobs WHERE status = 'delivered' AND job_id LIKE $1"


async def measure(servers: Servers, messages: int, rounds: int) -> Comparison:
    """Measure delivery and bare loop alternately."""
    await migrate(servers.database_url, ["functions.domain.migrations"])
    port = free_port()
    ours, theirs = [], []
    async with running(servers, ["-m", "benchmarks.receiver", str(port)]):
        await _wait_until_listening(port)
        route_id = await _add_route(servers, port)
        for number in range(rounds):
            theirs.append(await _bare(port, messages))
            ours.append(await _deliver(servers, route_id, number, messages))
    print(f"  aiohttp: {median(one.per_s for one in theirs):,.0f}/s", flush=True)
    print(f"  deliver_webhook: {median(one.per_s for one in ours):,.0f}/s", flush=True)
    return Comparison("webhooks, all of it", "aiohttp, only POST", ours, theirs, BAR)


async def _bare(port: int, messages: int) -> Pace:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.bare_posts", f"http://127.0.0.1:{port}/hook"),
        *(str(number) for number in (messages, IN_FLIGHT, _BODY_BYTES)),
        cwd=ROOT,
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    per_s, cpu_us = (float(figure) for figure in out.split())
    return Pace(per_s, cpu_us)


async def _deliver(servers: Servers, route_id: str, number: int, messages: int) -> Pace:
    if STREAM in ((await servers.broker.api("STREAM.NAMES"))["streams"] or []):
        await servers.broker.api(f"STREAM.DELETE.{STREAM}")
    await ensure(servers.broker, _manifest(servers))
    jobs = [
        json.dumps(_JOB | {"route_id": route_id, "job_id": f"B-{number}-{job}"}).encode()
        for job in range(messages)
    ]
    await publish_all(servers.broker, [(f"routes.{TENANT}.webhook", job) for job in jobs])
    command = ["-m", "runtime", "serve", str(_path(servers))]
    async with running(servers, command) as process:
        pace = await watch(servers.broker, STREAM, DURABLE, messages, process)
        # Of the first jobs some come too early for the endpoint, and come again later.
        async with asyncio.timeout(STALL_S):
            while await _fetch(servers, _DELIVERED, f"B-{number}-%") != messages:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
    return pace


def _path(servers: Servers) -> Path:
    """The shipped manifest, with loopback allowed and room for every job at one endpoint."""
    text = (ROOT / "manifests" / "routes.yaml").read_text(encoding="utf-8")
    text = text.replace("${WEBHOOK_ALLOWED_NETWORKS:-}", "127.0.0.0/8")
    text = text.replace("per_endpoint: 32", f"per_endpoint: {IN_FLIGHT}")
    path = servers.directory / "webhooks.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _manifest(servers: Servers) -> Manifest:
    return read([_path(servers)], servers.environment)


async def _add_route(servers: Servers, port: int) -> str:
    config = {"url": f"http://127.0.0.1:{port}/hook", "secret": _SECRET}
    await _fetch(servers, "INSERT INTO tenants (tenant_id) VALUES ($1) RETURNING 1", TENANT)
    return str(
        await _fetch(
            servers,
            "INSERT INTO message_routes"
            " (tenant_id, name, topic_filter, destination_type, destination_config)"
            " VALUES ($1, 'all', 'tenant/#', 'webhook', $2::text::jsonb) RETURNING id",
            TENANT,
            json.dumps(config),
        )
    )


async def _fetch(servers: Servers, statement: str, *arguments: object) -> object:
    connection = await asyncpg.connect(servers.database_url)
    try:
        return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


async def _wait_until_listening(port: int) -> None:
    async with asyncio.timeout(10):
        while not _is_listening(port):  # noqa: ASYNC110 - the process tells nobody
            await asyncio.sleep(0.05)


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
