"""A function that blocks the event loop for longer than nats-server waits for a sign of life."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from runtime.broker.connection import Broker
from tests.host import eventually, fresh, letters_of, wait_until_settled
from tests.servers import NatsServer
from tests.serving import serving

BLOCK_S = 6
IMPATIENT = """
ping_interval: "1s"
ping_max: 1
write_deadline: "1s"
"""
MODULE = f"""
import time
from runtime import Context, Event

async def block(event: Event[bytes], ctx: Context) -> None:
    if event.attempt == 1:
        time.sleep({BLOCK_S})
    await ctx.publish_core("done.STREAM", b"block %d" % event.attempt)

async def work(event: Event[bytes], ctx: Context) -> None:
    await ctx.publish_core("done.STREAM", event.raw)
"""
NEIGHBOURS = 200


class ImpatientServer(NatsServer):
    """Ends a connection that is silent for two seconds, where others wait for minutes."""

    def configuration(self) -> str:
        return super().configuration() + IMPATIENT


@pytest.fixture
def impatient(server_directory: Path) -> Iterator[ImpatientServer]:
    server = ImpatientServer(server_directory / "nats")
    yield server
    server.stop()


async def test_a_block_that_costs_the_connection_costs_no_message_and_the_host_comes_back(
    impatient: ImpatientServer, tmp_path: Path
) -> None:
    broker = await Broker.connect(impatient.url, name="test")
    stream = fresh("BLOCKED")
    write_project(tmp_path, stream)
    done: list[bytes] = []
    await broker.subscribe(f"done.{stream}", lambda message: done.append(message.data))
    environment = {"NATS_URL": impatient.url, "DATABASE_URL": "unused"}
    try:
        async with serving(tmp_path, **environment) as served:
            doors = await served.wait_for_line("Ready")
            await broker.publish(f"{stream}.block", b"")
            warning = await served.wait_for_line(
                "A function blocks the event loop; await there, or make it a plain function"
            )
            for number in range(NEIGHBOURS):
                await broker.publish(f"{stream}.work", b"%d" % number)
            for function in ("block", "work"):
                await wait_until_settled(broker, stream, function)
            await eventually(lambda: is_ready(doors["admin"]), "a ready host")
            restarts = served.text.count("Ready")
        reasons = await ended_connections(impatient)
        letters = [await letters_of(broker, function) for function in ("block", "work")]
    finally:
        await broker.close()

    assert "Stale Connection" in reasons
    assert restarts == 1
    assert warning["function"] in {"block", "work"}  # one module holds both
    assert f"time.sleep({BLOCK_S})" in warning["stack"]
    assert {b"%d" % number for number in range(NEIGHBOURS)} <= set(done)
    assert any(entry.startswith(b"block") for entry in done)
    assert letters == [[], []]


def write_project(folder: Path, stream: str) -> None:
    """Two functions in one process; JSON is YAML."""
    functions = {
        name: {
            "handler": f"{stream.lower()}:{name}",
            "consumer": {
                "stream": stream,
                "filter_subjects": [f"{stream}.{name}"],
                "ack_wait": "3s",
            },
            "retry": {"attempts": 3, "delay": "100ms"},
        }
        for name in ("block", "work")
    }
    manifest = {"streams": {stream: {"subjects": [f"{stream}.*"]}}, "functions": functions}
    (folder / f"{stream.lower()}.py").write_text(MODULE.replace("STREAM", stream))
    (folder / "app.yaml").write_text(json.dumps(manifest))


async def is_ready(door: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{door}/readyz")).status_code == httpx.codes.OK


async def ended_connections(server: NatsServer) -> list[str]:
    """Why the server ended connections."""
    async with httpx.AsyncClient(trust_env=False) as client:
        found = (await client.get(f"{server.monitor_url}/connz?state=closed")).json()
    return [connection["reason"] for connection in found["connections"]]
