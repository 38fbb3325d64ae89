"""Two hosts share the messages and are killed several times; no message is lost or doubled."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from tests.fault.endpoint import SECRET, Endpoint
from tests.fault.hosts import HostProcess, two_hosts
from tests.fault.reckoning import (
    assert_nothing_lost_nothing_doubled,
    is_settled,
    settled_telemetry,
)
from tests.fault.scene import MANIFESTS
from tests.fault.traffic import Traffic, register_devices
from tests.support.host import eventually
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(600)

MESSAGES = int(os.environ.get("FAULT_MESSAGES", "6000"))
KILLS_EACH = int(os.environ.get("FAULT_RESTARTS", "2"))


@pytest.fixture
async def hosts(
    nats_server: NatsServer, postgres_dsn: str, tmp_path: Path
) -> AsyncIterator[list[HostProcess]]:
    async with two_hosts(
        nats_server.url, postgres_dsn, MANIFESTS, tmp_path, JOB_REPEAT_WAIT_S="1"
    ) as both:
        yield both


async def test_every_message_becomes_one_row_and_every_job_is_delivered_though_hosts_are_killed(
    hosts: list[HostProcess], broker: Broker, postgres_dsn: str
) -> None:
    traffic = Traffic(MESSAGES)
    async with Endpoint() as endpoint:
        await register_devices(postgres_dsn, endpoint.url, SECRET)
        for host in hosts:
            await host.start()
        for host in hosts:
            await host.wait_until_ready()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(traffic.publish(broker))
            await kill_now_and_then(hosts, broker)
        await eventually(lambda: is_settled(broker, postgres_dsn), "the end of everything", 300)
        await assert_nothing_lost_nothing_doubled(traffic, endpoint, broker, postgres_dsn)
        assert [host.kills for host in hosts] == [KILLS_EACH, KILLS_EACH]


async def kill_now_and_then(hosts: list[HostProcess], broker: Broker) -> None:
    """Kill each host after a number of further rows, so that it dies at work."""
    chance = random.Random(7)  # noqa: S311 - the same kills in every run
    step = MESSAGES // (KILLS_EACH * len(hosts) + 1)
    at = 0
    for host in [host for _ in range(KILLS_EACH) for host in hosts]:
        at += chance.randint(step // 2, step)

        async def enough(wanted: int = at) -> bool:
            return await settled_telemetry(broker) >= wanted

        await eventually(enough, f"{at} rows", 120)
        await host.kill()
        await host.start()
