"""Many jobs to many endpoints, with hosts and receivers killed: delivered, in order, and counted.

`make long` does it with 100,000 jobs to 1,000 endpoints.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
import orjson
import pytest
import yaml

from functions.domain.delivery_options import token_of
from functions.domain.outbox import NewJob, add_jobs
from runtime.broker.connection import Broker
from tests.fault.books import assert_books_say, read_books
from tests.fault.crashing_receiver import CrashingReceiver
from tests.fault.endpoint import SECRET
from tests.fault.hosts import HostProcess, two_hosts
from tests.support.host import eventually
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(1800)

JOBS = int(os.environ.get("FAULT_JOBS", "3000"))
ENDPOINTS = int(os.environ.get("FAULT_ENDPOINTS", "60"))
ENDPOINTS_OF_A_TENANT = 10
DEVICES = 3
TURNS = 20
STORED_AT = datetime(2026, 8, 1, tzinfo=UTC)


class Endpoints:
    """The routes. Every second one has an order by device."""

    def __init__(self, database: "asyncpg.Connection[asyncpg.Record]", port: int) -> None:
        self._database = database
        self._port = port
        self.routes = [
            (f"tenant{n // ENDPOINTS_OF_A_TENANT}", str(uuid4())) for n in range(ENDPOINTS)
        ]

    def is_ordered(self, number: int) -> bool:
        return number % 2 == 1

    async def register(self) -> None:
        tenants = sorted({tenant for tenant, _ in self.routes})
        await self._database.execute(
            "INSERT INTO tenants (tenant_id) SELECT unnest($1::text[])", tenants
        )
        await self._database.executemany(
            "INSERT INTO message_routes (tenant_id, id, name, topic_filter, destination_type,"
            " destination_config, order_by)"
            " VALUES ($1, $2::text::uuid, $3, 'none', 'webhook', $4::text::jsonb, $5)",
            [
                (
                    tenant,
                    route_id,
                    f"route{number}",
                    json.dumps(
                        {"url": f"http://127.0.0.1:{self._port}/{number}", "secret": SECRET}
                    ),
                    "device_id" if self.is_ordered(number) else None,
                )
                for number, (tenant, route_id) in enumerate(self.routes)
            ],
        )

    async def make(self, first: int, count: int) -> None:
        """Make jobs `first` to `first + count`, in one transaction; they go to each in turn."""
        jobs = [self._job(number) for number in range(first, first + count)]
        async with self._database.transaction():
            await add_jobs(self._database, jobs)

    def _job(self, number: int) -> NewJob:
        endpoint = number % ENDPOINTS
        tenant, route_id = self.routes[endpoint]
        place = number // ENDPOINTS
        device = f"dev{place % DEVICES}"
        subject = f"routes.{tenant}.webhook"
        if self.is_ordered(endpoint):
            subject += f".{token_of(route_id, device)}"
        job_id = f"MANY-{number}"
        content = {
            "job_id": job_id,
            "route_id": route_id,
            "tenant_id": tenant,
            "device_id": device,
            "topic": f"tenant/{tenant}/device/{device}/telemetry",
            "msg_type": "telemetry",
            "payload": {"n": place},
            "stored_at": STORED_AT,
        }
        return NewJob(tenant, job_id, route_id, "webhook", orjson.dumps(content), None, subject)


@pytest.fixture
async def hosts(
    nats_server: NatsServer, postgres_dsn: str, tmp_path: Path
) -> AsyncIterator[list[HostProcess]]:
    async with two_hosts(
        nats_server.url, postgres_dsn, [write_manifest(tmp_path)], tmp_path, JOB_REPEAT_WAIT_S="1"
    ) as both:
        yield both


def write_manifest(directory: Path) -> Path:
    """The shipped manifest of routes, with shorter times."""
    document = yaml.safe_load(Path("manifests/routes.yaml").read_text(encoding="utf-8"))
    for name in ("deliver_webhook", "deliver_webhook_in_order"):
        function = document["functions"][name]
        function["consumer"]["ack_wait"] = "3s"
        function["retry"] = {"delay": "500ms", "factor": 1, "attempts": 100}
        function["settings"] |= {"breaker_pause_s": 0.5}
    path = directory / "routes.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


async def test_every_job_of_many_endpoints_is_delivered_in_order_and_counted_though_all_are_killed(
    hosts: list[HostProcess], broker: Broker, postgres_dsn: str
) -> None:
    receiver = CrashingReceiver()
    await receiver.start()
    database = await asyncpg.connect(postgres_dsn)
    endpoints = Endpoints(database, receiver.port)
    await endpoints.register()
    await asyncio.gather(*(host.start() for host in hosts))
    await asyncio.gather(*(host.wait_until_ready() for host in hosts))

    async def make_all() -> None:
        for turn in range(TURNS):
            await endpoints.make(turn * JOBS // TURNS, JOBS // TURNS)
            await receiver.reach((turn - 2) * JOBS // TURNS)

    async def kill_all() -> None:
        await receiver.reach(JOBS // 5)
        await hosts[0].kill()
        await receiver.reach(JOBS * 2 // 5)
        await receiver.crash()
        await hosts[0].start()
        await read_books(postgres_dsn)
        await receiver.start()
        await receiver.reach(JOBS * 3 // 5)
        await hosts[1].kill()
        await read_books(postgres_dsn)
        await hosts[1].start()
        await receiver.reach(JOBS * 4 // 5)
        await receiver.crash()
        await receiver.start()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(make_all())
        tasks.create_task(kill_all())

    async def is_over() -> bool:
        return (await read_books(postgres_dsn)).delivered == JOBS

    await eventually(is_over, "the end of all jobs", 60 + JOBS / 100)
    await assert_books_say(postgres_dsn, delivered=JOBS)
    await database.close()
    await receiver.crash()
    for number in range(ENDPOINTS):
        wanted = {f"MANY-{job}" for job in range(number, JOBS, ENDPOINTS)}
        assert set(receiver.accepted[f"/{number}"]) == wanted
    unordered = {
        (path, device): numbers
        for (path, device), numbers in receiver.numbers.items()
        if endpoints.is_ordered(int(path[1:])) and numbers != sorted(numbers)
    }
    assert not unordered
