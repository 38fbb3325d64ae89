"""A full stream refuses messages while they flow, until it has room again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.broker.connection import Broker
from tests.fault.scene import Servers, flow, seeds
from tests.support.host import consumer, eventually

pytestmark = pytest.mark.timeout(300)


@seeds
async def test_a_full_telemetry_stream_refuses_its_publishers_and_loses_and_doubles_nothing(
    servers: Servers, seed: int
) -> None:
    async with flow(servers, seed) as scene:
        refusals = scene.traffic.refusals

        async def are_refused() -> bool:
            return refusals.count("maximum messages exceeded") > 2

        async with full(scene.broker, "TELEMETRY"):
            await eventually(are_refused, "refused publishers")
            await scene.last(0, 2)


@seeds
async def test_a_full_stream_of_jobs_delays_them_but_no_telemetry_and_loses_and_doubles_nothing(
    servers: Servers, seed: int
) -> None:
    async with flow(servers, seed) as scene:
        broker = scene.broker

        async def is_refused() -> bool:
            return "Jobs wait, because their stream does not take them" in scene.hosts[0].log

        # The publisher waits, too: some of what it sends are jobs of its own.
        async def is_all_ingested() -> bool:
            found = await consumer(broker, "TELEMETRY", "ingest-workers")
            return not found["num_pending"] and not found["num_ack_pending"]

        # No delivery, which would make room, happens meanwhile.
        await pause(broker, "2100-01-01T00:00:00Z")
        async with full(broker, "ROUTES"):
            await eventually(is_refused, "refused jobs")
            await eventually(is_all_ingested, "all rows")
            assert not (await consumer(broker, "TELEMETRY", "ingest-workers"))["num_redelivered"]
        await pause(broker, "2000-01-01T00:00:00Z")


@seeds
async def test_full_dead_letters_keep_what_was_given_up_and_lose_and_double_nothing(
    servers: Servers, seed: int
) -> None:
    async with flow(servers, seed) as scene:

        async def are_refused() -> bool:
            return "Dead letter not stored, the message stays" in scene.hosts[0].log

        async with full(scene.broker, "DEAD_LETTERS"):
            await eventually(are_refused, "a refused dead letter")
            await scene.last(0, 2)


@asynccontextmanager
async def full(broker: Broker, stream: str) -> AsyncIterator[None]:
    """Limit a stream to the messages that it holds."""
    found = await broker.api(f"STREAM.INFO.{stream}")
    limits = {"discard": "new", "max_msgs": max(1, found["state"]["messages"])}
    await broker.api(f"STREAM.UPDATE.{stream}", {**found["config"], **limits})
    yield
    await broker.api(f"STREAM.UPDATE.{stream}", found["config"])


async def pause(broker: Broker, until: str) -> None:
    """Pause the delivery function's consumer."""
    await broker.api("CONSUMER.PAUSE.ROUTES.route-delivery", {"pause_until": until})
