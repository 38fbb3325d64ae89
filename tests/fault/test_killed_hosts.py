"""Two hosts share the work, each is killed several times: nothing lost, nothing doubled."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from runtime.broker.connection import Broker
from tests.fault.backbone import (
    MANIFESTS,
    ROUTED_EVERY,
    Telemetry,
    assert_nothing_lost_nothing_doubled,
    count_rows,
    delivered_ids,
    is_all_acknowledged,
    register_devices,
    stream_exists,
)
from tests.fault.hosts import HostProcess, until
from tests.receiver import Receiver
from tests.servers import NatsServer

pytestmark = pytest.mark.timeout(600)

MESSAGES = int(os.environ.get("FAULT_MESSAGES", "100000"))
KILLS_EACH = 3


@pytest.fixture
async def hosts(
    nats_server: NatsServer, postgres_dsn: str, tmp_path: Path
) -> AsyncIterator[list[HostProcess]]:
    """Two hosts on the same servers, not started yet."""
    environment = {
        "NATS_URL": nats_server.url,
        "DATABASE_URL": postgres_dsn,
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    both = [HostProcess(name, MANIFESTS, environment, tmp_path) for name in ("one", "two")]
    yield both
    for host in both:
        await host.stop()


async def test_every_message_becomes_one_row_and_every_job_is_delivered_though_hosts_are_killed(
    hosts: list[HostProcess], broker: Broker, postgres_dsn: str
) -> None:
    telemetry = Telemetry(MESSAGES)
    async with Receiver() as receiver:
        database = await asyncpg.connect(postgres_dsn)
        await register_devices(database, receiver.url)
        await database.close()
        for host in hosts:
            await host.start()
        await until(lambda: stream_exists(broker, "TELEMETRY"), "the stream TELEMETRY", 60)
        publishing = asyncio.create_task(telemetry.publish(broker))
        await kill_now_and_then(hosts, postgres_dsn)
        await publishing
        await until(lambda: is_all_acknowledged(broker), "the last acknowledgement", 240)

        async def have_arrived() -> bool:
            return len(delivered_ids(receiver)) >= MESSAGES // ROUTED_EVERY

        await until(have_arrived, "the last delivery", 120)
        await assert_nothing_lost_nothing_doubled(telemetry, receiver, broker, postgres_dsn)
        assert [host.kills for host in hosts] == [KILLS_EACH, KILLS_EACH]


async def kill_now_and_then(hosts: list[HostProcess], dsn: str) -> None:
    """Kill each host when so many more rows are there, so that it is at work when it dies."""
    chance = random.Random(7)  # noqa: S311 - the same kills in every run
    step = MESSAGES // (KILLS_EACH * len(hosts) + 1)
    at = 0
    for host in [host for _ in range(KILLS_EACH) for host in hosts]:
        at += chance.randint(step // 2, step)

        async def enough(wanted: int = at) -> bool:
            return await count_rows(dsn) >= wanted

        await until(enough, f"{at} rows", 120)
        await host.kill()
        await host.start()
