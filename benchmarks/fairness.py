"""Measures how long a quiet tenant waits beside a flooding one: with `fair_by`, without, alone."""

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path

from benchmarks.servers import Servers, running
from benchmarks.table import Waits
from runtime.broker.streams import ensure
from runtime.context import Publication
from runtime.manifest import Manifest, read
from runtime.message import Message

FLOOD, QUIET = 30_000, 200
EVERY_S = 0.02
PUBLISHED_TOGETHER = 1000
ANSWER_LIMIT_S = 120.0
_MANIFEST = """
streams:
  TENANTS: {{subjects: [tenants.*]}}
  SERVED: {{subjects: [served.*], retention: interest}}
functions:
  serve_tenant:
    handler: benchmarks.nothing:serve_tenant
    consumer: {{stream: TENANTS, ack_wait: 60s}}
    {keys}
"""
_WAYS: Mapping[str, tuple[str, int]] = {
    "alone": ("", 0),
    "first come, first served": ("", FLOOD),
    "fair_by": ("fair_by: {token: 2}", FLOOD),
    "ordered_by, fair_by": ("ordered_by: {field: device}\n    fair_by: {token: 2}", FLOOD),
}
_runs = itertools.count(1)


async def measure(servers: Servers) -> list[Waits]:
    """The quiet tenant's waits in every configuration, on the same servers."""
    return [Waits(way, await _round(servers, keys, flood)) for way, (keys, flood) in _WAYS.items()]


async def _round(servers: Servers, keys: str, flood: int) -> list[float]:
    path = servers.directory / "tenants.yaml"
    await _begin_anew(servers, _manifest(path, keys, servers))
    served: dict[int, asyncio.Future[float]] = {}
    time = asyncio.get_running_loop().time

    def on_served(message: Message) -> None:
        served[int(message.data)].set_result(time())

    subscription = await servers.broker.subscribe("served.quiet", on_served)
    waits_s = []
    async with running(servers, ["-m", "runtime", "serve", str(path)]):
        # Not counted: this message waits until the process has started.
        await asyncio.wait_for(await _ask(servers, served, -1), ANSWER_LIMIT_S)
        flooding = asyncio.create_task(_flood(servers, next(_runs), flood))
        given_at_s = []
        for number in range(QUIET):
            given_at_s.append(time())
            await _ask(servers, served, number)
            await asyncio.sleep(EVERY_S)
        await flooding
        async with asyncio.timeout(ANSWER_LIMIT_S):
            for number, began_s in enumerate(given_at_s):
                waits_s.append(await served[number] - began_s)
    await subscription.unsubscribe()
    return waits_s


async def _ask(
    servers: Servers, served: dict[int, asyncio.Future[float]], number: int
) -> asyncio.Future[float]:
    served[number] = asyncio.get_running_loop().create_future()
    await servers.broker.publish("tenants.quiet", b'{"n":%d,"device":"q%d"}' % (number, number))
    return served[number]


async def _flood(servers: Servers, run: int, count: int) -> None:
    for first in range(0, count, PUBLISHED_TOGETHER):
        await servers.broker.publish_many(
            [
                Publication("tenants.loud", b'{"n":%d,"device":"d%d"}' % (n, n % 500), f"{run}-{n}")
                for n in range(first, min(count, first + PUBLISHED_TOGETHER))
            ]
        )


async def _begin_anew(servers: Servers, manifest: Manifest) -> None:
    found = (await servers.broker.api("STREAM.NAMES"))["streams"] or []
    for stream in {"TENANTS", "MAILBOX"}.intersection(found):
        await servers.broker.api(f"STREAM.DELETE.{stream}")
    await ensure(servers.broker, manifest)


def _manifest(path: Path, keys: str, servers: Servers) -> Manifest:
    path.write_text(_MANIFEST.format(keys=keys), encoding="utf-8")
    return read([path], servers.environment)
