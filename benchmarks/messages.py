"""Compares accepted messages a second with a hand-written server, by the same client.

Ours is all of it: gateway, the tenant's key, validation, the request over NATS, row and transition,
two messages with their confirmation, the note of both. The peer inserts, publishes and answers.
"""

import asyncio
import sys
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from statistics import median

import aiohttp
import asyncpg
import psutil

from benchmarks.consumption import Pace
from benchmarks.servers import ROOT, Servers, clean_environment, free_port, running
from benchmarks.table import Comparison
from functions.domain.tenant_keys import digest_of, make_key
from runtime.broker.streams import ensure
from runtime.manifest import read
from runtime.resource.postgres import migrate

IN_FLIGHT = 64
BAR = 0.5
_TENANT = "messages"


async def measure(servers: Servers, messages: int, rounds: int) -> Comparison:
    """Measure both servers alternately."""
    await migrate(servers.database_url, ["functions.domain.migrations"])
    key = await _make_key(servers)
    manifest = _manifest(servers)
    await ensure(servers.broker, read([manifest], servers.environment))
    ours, theirs = [], []
    for _ in range(rounds):
        port = free_port()
        bare = ["-m", "benchmarks.bare_messages", str(port)]
        theirs.append(await _measure(servers, bare, port, messages, key))
        gateway = str(ROOT / "manifests" / "gateway.yaml")
        host = ["-m", "runtime", "serve", str(manifest), gateway]
        ours.append(await _measure(servers, host, port, messages, key))
    print(f"  bare server: {median(one.per_s for one in theirs):,.0f}/s", flush=True)
    print(f"  messages API: {median(one.per_s for one in ours):,.0f}/s", flush=True)
    return Comparison("messages, accepted", "bare INSERT and publish", ours, theirs, BAR)


async def _measure(
    servers: Servers, command: list[str], port: int, messages: int, key: str
) -> Pace:
    before = await _count(servers)
    added = {"GATEWAY_PORT": str(port), "ADMIN_KEY": make_key()}
    with_port = replace(servers, environment={**servers.environment, **added})
    async with running(with_port, command) as process:
        url = f"http://127.0.0.1:{port}/v1/messages/sms"
        await _wait_until_accepting(url, key)
        cpu_s = _cpu_s(process)
        per_s = await _post(url, messages, key)
        used_s = _cpu_s(process) - cpu_s
    sent = messages + messages // 10
    found = await _count(servers) - before
    if found < sent:
        raise RuntimeError(f"{found} rows of {sent} accepted messages")
    return Pace(per_s, used_s / sent * 1e6)


async def _post(url: str, messages: int, key: str) -> float:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.message_posts", url, str(messages), str(IN_FLIGHT)),
        cwd=ROOT,
        env={**clean_environment(), "MESSAGE_KEY": key},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    return float(out)


async def _wait_until_accepting(url: str, key: str) -> None:
    headers, body = {"Authorization": f"Bearer {key}"}, {"to": "+436641234567", "body": "first"}
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.timeout(30):
        while True:
            try:
                async with session.post(url, json=body) as answer:
                    if answer.status == HTTPStatus.ACCEPTED:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.2)


def _manifest(servers: Servers) -> Path:
    """The shipped manifest without the functions that send."""
    text = (ROOT / "manifests" / "messaging.yaml").read_text(encoding="utf-8")
    path = servers.directory / "messages.yaml"
    path.write_text(text.split("  # Text messages")[0], encoding="utf-8")
    return path


async def _make_key(servers: Servers) -> str:
    key = make_key()
    connection = await asyncpg.connect(servers.database_url)
    try:
        await connection.execute("INSERT INTO tenants (tenant_id) VALUES ($1)", _TENANT)
        await connection.execute(
            "INSERT INTO tenant_keys (tenant_id, key_sha256) VALUES ($1, $2)",
            _TENANT,
            bytes.fromhex(digest_of(key)),
        )
    finally:
        await connection.close()
    return key


async def _count(servers: Servers) -> int:
    connection = await asyncpg.connect(servers.database_url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM messages")
        return count
    finally:
        await connection.close()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
