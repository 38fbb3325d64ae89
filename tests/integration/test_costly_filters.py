"""Costly filters of one tenant never stop the event loop; timed, so it is for `make long`."""

import asyncio
import time

import pytest

from runtime.broker.connection import Broker
from tests.integration.test_ingest_routes import SLOW, add_route
from tests.support.ingest import GOOD, raw, register, started

BLOCKED_AT_MOST_S = 0.5
DELAYED_AT_MOST_S = 10.0


@pytest.mark.long
async def test_eight_costly_routes_block_the_loop_for_less_than_half_a_second(
    postgres_dsn: str, broker: Broker
) -> None:
    async with started(postgres_dsn, broker) as function:
        await register(function.pool)
        await register(function.pool, tenant="healthy")
        for number in range(8):
            await add_route(function, "#", f"{SLOW} || {number} > 9")
        await add_route(function, "#", "metrics.temp > 20.0", tenant="healthy")
        await function.restart()
        longest_s = 0.0

        async def watch() -> None:
            nonlocal longest_s
            last_s = time.perf_counter()
            while True:
                await asyncio.sleep(0)
                now_s = time.perf_counter()
                longest_s, last_s = max(longest_s, now_s - last_s), now_s

        slow = {**GOOD, "text": "a" * 4000}
        watching = asyncio.create_task(watch())
        sequence = 0
        waits_s = []
        for _ in range(10):
            batch = []
            for _ in range(50):
                batch.append(raw(sequence + 1, slow))
                batch.append(raw(sequence + 2, subject="telemetry.healthy.dev1"))
                sequence += 2
            began_s = time.perf_counter()
            await function.run(*batch)
            waits_s.append(time.perf_counter() - began_s)
        watching.cancel()
        jobs = "SELECT count(*) FROM delivery_jobs WHERE tenant_id = $1"
        assert await function.pool.fetchval(jobs, "healthy") == 500
        assert await function.counts() == (1000, 0)
        assert longest_s < BLOCKED_AT_MOST_S, longest_s
        assert max(waits_s) < DELAYED_AT_MOST_S, waits_s
