"""Thousands of messages that are parked for hours, beside messages that are delivered at once."""

import asyncio
import statistics
from typing import Any

import pytest

from runtime import Context, Retry
from runtime.broker.connection import Broker
from runtime.context import Publication
from tests.support.command import runtime
from tests.support.host import Journal, eventually, fresh, running_host, wait_until_settled
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(180)

DEAD = 10_000
SLOTS = 500
"""Far fewer than the jobs that wait: were they delayed in the consumer, nothing else would move."""
LIVE = 200
NOISE_S = 0.05


class Jobs:
    """One consumer whose jobs go to a dead endpoint or to a live one."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.stream, self.name = fresh("JOBS"), fresh("deliver")
        self.delivered = Journal()
        self.is_dead = True

    async def deliver(self, ctx: Context, event: Any) -> None:
        if event.raw == b"dead" and self.is_dead:
            raise Retry("connection refused", delay_s=7200)
        self.delivered.add((event.raw, event.attempt))

    async def publish(self, data: bytes, count: int) -> None:
        for start in range(0, count, 1000):
            rest = range(start, min(count, start + 1000))
            subject = f"{self.stream}.a"
            await self.broker.publish_many(
                [Publication(subject, data, f"{self.stream}-{data!r}-{n}") for n in rest]
            )

    async def count_parked(self) -> int:
        filtered = {"subjects_filter": f"mailbox.parked.{self.name}.>"}
        found = await self.broker.api("STREAM.INFO.MAILBOX", filtered)
        return len(found["state"].get("subjects") or {})

    async def typical_delay_s(self) -> float:
        """The typical time from a live job's publication to the end of its delivery."""
        time = asyncio.get_running_loop().time
        delays_s = []
        for _ in range(LIVE):
            began_s, before = time(), len(self.delivered.entries)
            await self.broker.publish(f"{self.stream}.a", b"live")
            await self.delivered.wait(before + 1)
            delays_s.append(time() - began_s)
        return statistics.median(delays_s)


async def test_ten_thousand_jobs_that_wait_for_hours_do_not_slow_those_to_a_live_endpoint(
    broker: Broker, nats_server: NatsServer
) -> None:
    jobs = Jobs(broker)
    spec = {
        "handler": "on_event",
        "consumer": {"stream": jobs.stream, "max_ack_pending": SLOTS},
        "concurrency": 64,
    }
    streams = {jobs.stream: {"subjects": [f"{jobs.stream}.>"], "retention": "workqueue"}}
    async with running_host(
        nats_server.url, {jobs.name: spec}, {jobs.name: jobs.deliver}, streams=streams
    ):
        before_s = await jobs.typical_delay_s()
        await jobs.publish(b"dead", DEAD)
        # Publish right behind the waiting jobs, while they are being parked.
        await jobs.publish(b"live", LIVE)
        await jobs.delivered.wait(2 * LIVE)

        async def all_parked() -> bool:
            return await jobs.count_parked() == DEAD

        await eventually(all_parked, f"{DEAD:,} parked jobs")
        while_waiting_s = await jobs.typical_delay_s()
        await wait_until_settled(broker, jobs.stream, jobs.name)
        listed = await runtime(nats_server.url, "parked", "ls", "--function", jobs.name)

        jobs.is_dead = False
        hurried = await runtime(nats_server.url, "parked", "run-now", "--function", jobs.name)
        await jobs.delivered.wait(3 * LIVE + DEAD, timeout_s=60)

    assert while_waiting_s < 4 * before_s + NOISE_S
    assert listed.out.endswith("the first 100 of 10,000 parked messages; --limit 0 shows all\n")
    assert hurried.out == "10,000 parked messages made due now\n"
    late = jobs.delivered.entries[3 * LIVE :]
    assert late == [(b"dead", 2)] * DEAD
