"""A function blocks the event loop for longer than nats-server waits for a PONG."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from runtime.broker.connection import Broker
from tests.support.host import fresh, letters_of, wait_until_settled
from tests.support.servers import NatsServer
from tests.support.serving import serving

BLOCK_S = 6
IMPATIENT = """
ping_interval: "2s"
ping_max: 1
write_deadline: "2s"
"""
MODULE = f"""
import time
from runtime import Context, Event

async def block(event: Event[bytes], ctx: Context) -> None:
    if event.attempt == 1:
        time.sleep({BLOCK_S})
    await ctx.publish_core("done.STREAM", b"block %d" % event.attempt)

async def work(event: Event[bytes], ctx: Context) -> None:
    await ctx.publish_core("done.STREAM", event.raw[:10].strip())
"""
WARNING = "A function blocks the event loop; await there, or make it a plain function"
NEIGHBOURS = 200
SIZE_BYTES = 200_000
"""Of each neighbour: together more than the sockets between a server and a host hold."""


class ImpatientServer(NatsServer):
    """A nats-server that closes a connection after four silent seconds instead of minutes."""

    def configuration(self) -> str:
        return super().configuration() + IMPATIENT


@pytest.fixture
def impatient(server_directory: Path) -> Iterator[ImpatientServer]:
    server = ImpatientServer(server_directory / "nats")
    yield server
    server.stop()


class Project:
    """Two functions in one process, one of which blocks, and their settlements."""

    def __init__(self, folder: Path, broker: Broker, url: str) -> None:
        self.folder = folder
        self.broker = broker
        self.environment = {"NATS_URL": url, "DATABASE_URL": "unused"}
        self.stream = fresh("BLOCKED")
        self.done: list[bytes] = []

    async def write(self) -> None:
        """JSON is YAML."""
        functions = {
            name: {
                "handler": f"{self.stream.lower()}:{name}",
                "consumer": {
                    "stream": self.stream,
                    "filter_subjects": [f"{self.stream}.{name}"],
                    "ack_wait": "2s",
                },
                "retry": {"attempts": 3, "delay": "100ms"},
                "max_in_flight": NEIGHBOURS,
            }
            for name in ("block", "work")
        }
        streams = {self.stream: {"subjects": [f"{self.stream}.*"]}}
        manifest = {"streams": streams, "functions": functions}
        module = MODULE.replace("STREAM", self.stream)
        (self.folder / f"{self.stream.lower()}.py").write_text(module)
        (self.folder / "app.yaml").write_text(json.dumps(manifest))
        await self.broker.subscribe(
            f"done.{self.stream}", lambda message: self.done.append(message.data)
        )

    async def settled(self) -> None:
        for function in ("block", "work"):
            await wait_until_settled(self.broker, self.stream, function)


@pytest.fixture
async def project(impatient: ImpatientServer, tmp_path: Path) -> AsyncIterator[Project]:
    broker = await Broker.connect(impatient.url, name="test")
    yield Project(tmp_path, broker, impatient.url)
    await broker.close()


async def test_a_block_costs_neither_the_connection_nor_a_delivery(
    impatient: ImpatientServer, project: Project
) -> None:
    await project.write()
    async with serving(project.folder, **project.environment) as served:
        await served.wait_for_line("Ready")
        await project.broker.publish(f"{project.stream}.block", b"")
        warning = await served.wait_for_line(WARNING)
        for number in range(NEIGHBOURS):
            data = b"%d" % number
            await project.broker.publish(f"{project.stream}.work", data.ljust(SIZE_BYTES))
        await project.settled()
        # Read the log while the host still runs: the host closes its connection at its end.
        reasons = await ended_connections(impatient)
    letters = [await letters_of(project.broker, function) for function in ("block", "work")]

    assert warning["function"] == "block"
    assert f"time.sleep({BLOCK_S})" in warning["stack"]
    assert reasons == []
    assert "NATS connection lost" not in served.text
    assert Counter(project.done) == Counter(
        [b"block 1", *(b"%d" % number for number in range(NEIGHBOURS))]
    )
    assert letters == [[], []]


async def ended_connections(server: NatsServer) -> list[str]:
    """The server's reasons for closing connections."""
    async with httpx.AsyncClient(trust_env=False) as client:
        found = (await client.get(f"{server.monitor_url}/connz?state=closed")).json()
    return [connection["reason"] for connection in found["connections"]]
