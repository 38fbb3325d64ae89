"""Slow endpoints of some tenants, which succeed in the end, leave calls to the other tenants."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import orjson
import pytest

from functions.route_delivery.job import Job
from runtime import manifest
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from tests.support.documentation import ROOT
from tests.support.host import eventually
from tests.support.receiver import Answer, Receiver
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(120)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CALLS = 64
SLOW, QUICK = ("slow-a", "slow-b"), "quick"
ENDPOINTS, JOBS_EACH = 64, 6
QUICK_JOBS = 30
FIRST, SECOND = CALLS * 3 // 4, CALLS * 3 // 16
"""What the tenant gets that comes first, and the next one of the rest."""
WITHIN_S = 10.0
"""Far more than a delivery takes, and less than the slow endpoints, which do not answer at all."""


@pytest.fixture
async def deliverer(
    nats_server: NatsServer, postgres_dsn: str, tmp_path: Path
) -> AsyncIterator[Host]:
    """The shipped functions of routes, with fewer calls at a time."""
    shipped = (ROOT / "manifests" / "routes.yaml").read_text()
    assert shipped.count("concurrency: 1024") == 1
    path = tmp_path / "routes.yaml"
    fewer = shipped.replace("concurrency: 1024", f"concurrency: {CALLS}")
    path.write_text(fewer.replace("timeout_s: 15", "timeout_s: 50"))
    environment = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "SECRETS_KEYS": "k" * 32}
    declared = manifest.read([path, ROOT / "manifests" / "telemetry.yaml"], environment)
    addresses = Addresses(nats_server.url, postgres_dsn)
    host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), HostOptions())
    await host.start()
    yield host
    await host.drain(10.0)


async def add_routes(pool: asyncpg.Connection, tenant: str, urls: list[str]) -> list[str]:
    """The ids of new routes."""
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ($1)", tenant)
    rows = await pool.fetch(
        "INSERT INTO message_routes"
        " (tenant_id, name, topic_filter, destination_type, destination_config)"
        " SELECT $1, url, 'tenant/#', 'webhook', jsonb_build_object('url', url, 'secret', $3::text)"
        " FROM unnest($2::text[]) AS url RETURNING id::text",
        *(tenant, urls, SECRET),
    )
    return [row["id"] for row in rows]


def job_of(tenant: str, route_id: str, number: int) -> Publication:
    job = Job(
        job_id=f"{tenant}-{route_id[:8]}-{number}",
        route_id=route_id,
        tenant_id=tenant,
        device_id="d",
        topic=f"tenant/{tenant}/device/d/telemetry",
        msg_type="telemetry",
        payload={},
        stored_at=datetime.now(UTC),
    )
    data = orjson.dumps(job.model_dump(mode="json"))
    return Publication(f"routes.{tenant}.webhook", data, job.job_id)


async def test_slow_tenants_leave_calls_to_a_quick_one(
    deliverer: Host, broker: Broker, postgres_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = asyncio.Event()
    connection = await asyncpg.connect(postgres_dsn)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        slow = [await stack.enter_async_context(Receiver(Answer(held=answer))) for _ in range(8)]
        quick = await stack.enter_async_context(Receiver())
        for tenant in SLOW:
            urls = [
                f"http://127.0.0.1:{slow[number % len(slow)].port}/{tenant}/{number}"
                for number in range(ENDPOINTS)
            ]
            routes = await add_routes(connection, tenant, urls)
            jobs = [job_of(tenant, route, n) for n in range(JOBS_EACH) for route in routes]
            await broker.publish_many(jobs)
        [route] = await add_routes(connection, QUICK, [quick.url])
        await eventually(lambda: has_filled(slow), "calls that the slow tenants hold")
        took_s = []
        for number in range(QUICK_JOBS):
            began_s = time.monotonic()
            await broker.publish_many([job_of(QUICK, route, number)])
            async with asyncio.timeout(WITHIN_S):
                await quick.received(number + 1)
            took_s.append(time.monotonic() - began_s)
        held = waiting(slow)
        answer.set()

    with capsys.disabled():
        longest_ms, all_held = max(took_s) * 1000, sum(held.values())
        sys.stdout.write(
            f"\n{QUICK_JOBS} deliveries beside {all_held} that hang: {longest_ms:.0f} ms at most "
        )
    assert sum(held.values()) < CALLS
    assert sorted(took_s)[len(took_s) // 2] < WITHIN_S / 10


async def has_filled(slow: list[Receiver]) -> bool:
    held = waiting(slow)
    return max(held.values(), default=0) >= FIRST and min(held.values()) >= SECOND


def waiting(slow: list[Receiver]) -> Counter[str]:
    """Requests by tenant that wait for their answers."""
    return Counter(request.path.split("/")[1] for each in slow for request in each.requests)
