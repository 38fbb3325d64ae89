"""Compares device ingest over HTTP with a hand-written route, by the same client.

Ours is the whole gateway: limits, the device's token, strict JSON, the envelope, one message with
its confirmation. The peer publishes the body and answers.
"""

import asyncio
import hashlib
import sys
from dataclasses import replace
from http import HTTPStatus
from statistics import median

import aiohttp
import asyncpg
import psutil

from benchmarks.consumption import Pace
from benchmarks.servers import ROOT, Servers, clean_environment, free_port, running
from benchmarks.table import Comparison
from runtime.broker.streams import ensure
from runtime.manifest import read
from runtime.resource.postgres import migrate

CONNECTIONS = 64
DEVICES = 500
BAR = 0.9
_TENANT, _TOKEN = "bench", "a-provision-token"
_MANIFEST = """
streams: {TELEMETRY: {subjects: ["telemetry.>"], storage: file}}
functions:
  prove_devices:
    handler: functions.ingest.device_proof:prove_devices
    endpoint: {service: management, subject: management.devices.prove}
    uses: [postgres]
"""


async def measure(servers: Servers, messages: int, rounds: int) -> Comparison:
    """Measure both servers alternately."""
    await migrate(servers.database_url, ["functions.domain.migrations"])
    await _register(servers)
    manifest = servers.directory / "device_proof.yaml"
    manifest.write_text(_MANIFEST, encoding="utf-8")
    await ensure(servers.broker, read([manifest], servers.environment))
    ours, theirs = [], []
    for _ in range(rounds):
        port = str(free_port())
        bare = ["-m", "benchmarks.bare_gateway", port]
        theirs.append(await _measure(servers, bare, port, messages))
        gateway = ROOT / "manifests" / "gateway.yaml"
        host = ["-m", "runtime", "serve", str(manifest), str(gateway)]
        ours.append(await _measure(servers, host, port, messages))
    print(f"  bare route: {median(one.per_s for one in theirs):,.0f}/s", flush=True)
    print(f"  gateway: {median(one.per_s for one in ours):,.0f}/s", flush=True)
    return Comparison("device ingest by HTTP", "bare Starlette route", ours, theirs, BAR)


async def _measure(servers: Servers, command: list[str], port: str, messages: int) -> Pace:
    added = {
        "GATEWAY_PORT": port,
        "GATEWAY_TENANT_RATE": "0",
        "ADMIN_KEY": "a key that nobody uses",
    }
    with_port = replace(servers, environment={**servers.environment, **added})
    async with running(with_port, command) as process:
        await _wait_until_accepting(port)
        before = await _count(servers)
        cpu_s = _cpu_s(process)
        per_s = await _post(port, messages)
        used_s = _cpu_s(process) - cpu_s
    sent = messages + messages // 10
    stored = await _count(servers) - before
    if stored != sent:
        raise RuntimeError(f"{stored} stored of {sent} accepted")
    return Pace(per_s, used_s / sent * 1e6)


async def _post(port: str, messages: int) -> float:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.device_posts", port, str(messages), str(CONNECTIONS), str(DEVICES)),
        cwd=ROOT,
        env={**clean_environment(), "DEVICE_TOKEN": _TOKEN},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    return float(out)


async def _wait_until_accepting(port: str) -> None:
    url = f"http://127.0.0.1:{port}/ingest/v1/tenant/{_TENANT}/device/device-0/telemetry"
    headers = {"X-Provision-Token": _TOKEN}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.timeout(30):
        while True:
            try:
                async with session.post(url, json={"site_id": "s1"}) as answer:
                    if answer.status == HTTPStatus.ACCEPTED:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.2)


async def _register(servers: Servers) -> None:
    connection = await asyncpg.connect(servers.database_url)
    try:
        await connection.execute(
            "INSERT INTO tenants (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", _TENANT
        )
        await connection.execute(
            "INSERT INTO device_registry (tenant_id, device_id, site_id, provision_token_hash)"
            " SELECT $1, 'device-' || n, 's1', $3 FROM generate_series(0, $2 - 1) n"
            " ON CONFLICT DO NOTHING",
            _TENANT,
            DEVICES,
            hashlib.sha256(_TOKEN.encode()).digest(),
        )
    finally:
        await connection.close()


async def _count(servers: Servers) -> int:
    info = await servers.broker.api("STREAM.INFO.TELEMETRY")
    count: int = info["state"]["last_seq"]
    return count


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
