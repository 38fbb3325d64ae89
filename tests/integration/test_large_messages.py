"""Large messages: the host bounds what it holds by bytes, however many messages wait."""

import asyncio
import json
from pathlib import Path

import psutil
import pytest

from runtime.broker.connection import Broker
from tests.support.host import consumer, eventually, fresh, wait_until_settled
from tests.support.servers import NatsServer
from tests.support.serving import serving

pytestmark = pytest.mark.timeout(300)

MODULE = """
import asyncio
from runtime import Context, Event

async def work(event: Event[bytes], ctx: Context) -> None:
    await asyncio.sleep(0.001)
"""
TOTAL_BYTES = 1_000_000_000
"""Through each of two functions."""
BACKLOG = 30


def _resident_bytes(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


@pytest.mark.parametrize(
    ("size_bytes", "most_growth_bytes"),
    # Of one message some ten copies stand in the connection's buffers while it is read.
    [(500_000, 120_000_000), (6_000_000, 350_000_000)],
    ids=["in_budget", "above_budget"],
)
async def test_two_gigabytes_flow_through_a_bounded_memory_without_a_redelivery(
    nats_server: NatsServer,
    broker: Broker,
    tmp_path: Path,
    size_bytes: int,
    most_growth_bytes: int,
) -> None:
    streams = [fresh("LARGE"), fresh("LARGE")]
    count = TOTAL_BYTES // size_bytes
    manifest = {
        "streams": {
            name: {"subjects": [f"{name}.a"], "retention": "workqueue", "max_msgs": BACKLOG}
            for name in streams
        },
        "functions": {
            name.lower(): {
                "handler": "large:work",
                "consumer": {"stream": name, "ack_wait": "5s"},
                "retry": {"attempts": 3},
            }
            for name in streams
        },
    }
    (tmp_path / "large.py").write_text(MODULE)
    (tmp_path / "app.yaml").write_text(json.dumps(manifest))  # JSON is YAML.

    async def publish(stream: str) -> None:
        """Publish as fast as the function works: the stream has a limit on its backlog."""
        data = bytes(size_bytes)

        async def has_room() -> bool:
            found = await broker.api(f"STREAM.INFO.{stream}")
            return bool(found["state"]["messages"] < BACKLOG)

        for _ in range(count):
            await eventually(has_room, "room in the stream")
            await broker.publish(f"{stream}.a", data)

    environment = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    async with serving(tmp_path, **environment) as served:
        await served.wait_for_line("Ready")
        before_bytes = most_bytes = _resident_bytes(served.process.pid)
        publishing = asyncio.gather(*map(publish, streams))
        while not publishing.done():
            most_bytes = max(most_bytes, _resident_bytes(served.process.pid))
            await asyncio.wait({asyncio.ensure_future(asyncio.shield(publishing))}, timeout=0.05)
        await publishing
        for stream in streams:
            await wait_until_settled(broker, stream, stream.lower())
            found = await consumer(broker, stream, stream.lower())
            assert found["delivered"]["consumer_seq"] == count
            assert found["num_redelivered"] == 0

    assert most_bytes - before_bytes < most_growth_bytes
    assert "NATS connection lost" not in served.text


async def test_a_backlog_of_large_messages_costs_no_connection_and_no_delivery(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    """The server closes a connection for which more than 64 MB wait."""
    stream, size_bytes, count = fresh("LARGE"), 6_000_000, 60
    manifest = {
        "streams": {stream: {"subjects": [f"{stream}.a"]}},
        "functions": {
            "work": {
                "handler": "large:work",
                "consumer": {"stream": stream, "durable": "work"},
                "retry": {"attempts": 3},
            }
        },
    }
    (tmp_path / "large.py").write_text(MODULE)
    (tmp_path / "app.yaml").write_text(json.dumps(manifest))
    await broker.api(f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [f"{stream}.a"]})
    for _ in range(count):
        await broker.publish(f"{stream}.a", bytes(size_bytes))

    environment = {"NATS_URL": nats_server.url, "DATABASE_URL": "unused"}
    async with serving(tmp_path, **environment) as served:
        await served.wait_for_line("Ready")
        await wait_until_settled(broker, stream, "work")
        found = await consumer(broker, stream, "work")

    assert found["delivered"]["consumer_seq"] == count
    assert "NATS connection lost" not in served.text
