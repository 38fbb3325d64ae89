"""A JetStream cluster of three loses leaders while messages flow through two hosts."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from runtime import Context
from runtime.broker.connection import ApiError, Broker
from runtime.errors import PublishFailed, Unavailable
from tests.cluster import NatsCluster, NatsNode
from tests.host import Journal, eventually, fresh, running_host

STREAM = "FLOW"
STREAMS = {STREAM: {"subjects": ["flow.>"], "replicas": 3}}
IN_FLIGHT = 32


class Publisher:
    """Publishes numbers until told to stop, each until JetStream has confirmed it."""

    def __init__(self, broker: Broker) -> None:
        self.confirmed = 0
        self.refusals: list[str] = []
        self._broker = broker
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            number = self.confirmed + 1
            try:
                await self._broker.publish("flow.a", b"%d" % number, msg_id=f"n{number}")
            except PublishFailed as failure:
                self.refusals.append(failure.reason)
                continue
            self.confirmed = number
            self._moved.set()

    async def advance(self, count: int) -> None:
        """Return when so many more are confirmed."""
        goal = self.confirmed + count
        async with asyncio.timeout(60):
            while self.confirmed < goal:
                self._moved.clear()
                await self._moved.wait()

    async def stop(self) -> int:
        """How many are confirmed in all."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.confirmed


async def _leader(broker: Broker, cluster: NatsCluster, subject: str) -> NatsNode:
    async def look() -> str:
        try:
            return str((await broker.api(subject, timeout_s=1))["cluster"].get("leader", ""))
        except (ApiError, Unavailable):
            return ""

    return cluster.node(await eventually(look, f"a leader of {subject}", 60))


async def test_killed_leaders_lose_nothing_and_the_flow_resumes_by_itself(
    nats_cluster: NatsCluster,
) -> None:
    name, journal = fresh("flow"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        journal.add(int(event.raw))

    spec = {
        "handler": "on_event",
        "consumer": {"stream": STREAM, "ack_wait": "5s"},
        "max_in_flight": IN_FLIGHT,
        "retry": {"attempts": 20},
    }
    serve: Callable[[], Any] = lambda: running_host(  # noqa: E731 - twice the same
        nats_cluster.url, {name: spec}, {name: act}, streams=STREAMS
    )
    async with serve(), serve():
        broker = await Broker.connect(nats_cluster.url, name="test")
        own = await broker.api("STREAM.INFO.MAILBOX")
        publisher = Publisher(broker)
        await publisher.advance(300)
        for subject in (f"STREAM.INFO.{STREAM}", f"CONSUMER.INFO.{STREAM}.{name}"):
            killed = await _leader(broker, nats_cluster, subject)
            killed.kill()
            await publisher.advance(300)
            await journal.wait(len(journal.entries) + 200, timeout_s=60)
            killed.start()
            await nats_cluster.wait_until_whole()
            await publisher.advance(100)
        count = await publisher.stop()
        await eventually(_done(journal, count), "every message", 60)
        await broker.close()

    runs = Counter(journal.entries)
    doubled = [number for number, times in runs.items() if times > 1]
    assert own["config"]["num_replicas"] == 3
    # The last one may be stored without its confirmation having come.
    assert set(range(1, count + 1)) <= set(runs) <= set(range(1, count + 2))
    # What either host held when one of the two leaders died may come again, and nothing else does.
    assert len(doubled) <= 2 * 2 * IN_FLIGHT


async def test_a_leader_that_hands_over_costs_the_publish_at_most_that_it_was_at(
    nats_cluster: NatsCluster,
) -> None:
    broker = await Broker.connect(nats_cluster.url, name="test")
    config = {"name": STREAM, "subjects": ["flow.>"], "storage": "file", "retention": "limits"}
    await broker.api(f"STREAM.CREATE.{STREAM}", {**config, "num_replicas": 3})
    publisher = Publisher(broker)
    for _ in range(2):
        await publisher.advance(100)
        await broker.api(f"STREAM.LEADER.STEPDOWN.{STREAM}")
    await publisher.advance(100)
    await publisher.stop()
    await broker.close()

    # None was refused for want of a leader.
    assert set(publisher.refusals) <= {"no confirmation within 5 s"}
    assert len(publisher.refusals) <= 2


def _done(journal: Journal, count: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return len(set(journal.entries)) >= count

    return look
