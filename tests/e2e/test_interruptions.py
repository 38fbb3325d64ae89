"""What a served function loses when its host ends or a server is away."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from runtime.broker import stored
from runtime.broker.connection import Broker
from tests.support.documentation import Served, listening, serving
from tests.support.host import wait_until_settled
from tests.support.servers import NatsServer, PostgresServer

MODULE = """
import asyncio
from runtime import Context, Event

async def work(event: Event[float], ctx: Context) -> None:
    await ctx.publish_core("began", str(ctx.attempt).encode())
    await asyncio.sleep(event.data)
    await ctx.publish("done", str(ctx.attempt).encode())

async def write(event: Event[int], ctx: Context) -> None:
    await ctx.publish_core("began", str(ctx.attempt).encode())
    await ctx.postgres.execute("INSERT INTO rows VALUES ($1, $2)", event.data, ctx.attempt)
    await ctx.publish("done", str(ctx.attempt).encode())
"""
MANIFEST = """
streams:
  TASKS: {subjects: [tasks]}
  DONE: {subjects: [done]}
functions:
  work:
    handler: tasks:work
    consumer: {stream: TASKS, ack_wait: 10s}
    timeout: 1h
    retry: {attempts: 2, delay: 100ms}
"""


def write_project(folder: Path) -> None:
    (folder / "tasks.py").write_text(MODULE)
    (folder / "work.yaml").write_text(MANIFEST)
    text = MANIFEST.replace("work", "write") + "    uses: [postgres]\n"
    (folder / "write.yaml").write_text(text)


@pytest.fixture
def nats(server_directory: Path) -> Iterator[NatsServer]:
    """A nats-server of the test's own, since the test stops it."""
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


@pytest.fixture
async def asker(nats: NatsServer) -> AsyncIterator[Broker]:
    connected = await Broker.connect(nats.url, name="test")
    yield connected
    await connected.close()


def served_by(folder: Path, nats: NatsServer, grace_s: float = 30) -> dict[str, str]:
    write_project(folder)
    return {"NATS_URL": nats.url, "DATABASE_URL": "unused", "RUNTIME_GRACE_S": str(grace_s)}


async def test_what_is_not_finished_in_time_is_handed_over_and_uses_up_no_attempt(
    nats: NatsServer, asker: Broker, tmp_path: Path
) -> None:
    environment = served_by(tmp_path, nats, grace_s=0.2)
    async with listening(asker, "began") as began:
        with serving(tmp_path, "work.yaml", environment=environment) as served:
            await asker.publish("tasks", b"3600")
            first = (await began.get()).data
            code = await asyncio.to_thread(served.stop)
            served.wait_for("Not finished in time, given back", function="work", messages=1)
        with serving(tmp_path, "work.yaml", environment=environment) as served:
            second = (await began.get()).data

    assert code == 0
    assert [first, second] == [b"1", b"1"]


async def test_an_outage_of_postgresql_uses_up_no_attempt(
    nats: NatsServer, asker: Broker, tmp_path: Path, server_directory: Path
) -> None:
    postgres = PostgresServer(server_directory / "postgres")
    try:
        database = await asyncpg.connect(postgres.dsn())
        await database.execute("CREATE TABLE rows (number int, attempt int)")
        await database.close()
        environment = {**served_by(tmp_path, nats), "DATABASE_URL": postgres.dsn()}
        with serving(tmp_path, "write.yaml", environment=environment) as served:
            postgres.stop()
            async with listening(asker, "done") as done:
                for number in range(3):
                    await asker.publish("tasks", json.dumps(number).encode())
                await asyncio.to_thread(waits, served)
                postgres.start()
                attempts = {(await done.get()).data for _ in range(3)}
        database = await asyncpg.connect(postgres.dsn())
        rows = await database.fetch("SELECT number FROM rows ORDER BY number")
        await database.close()
    finally:
        postgres.stop()

    assert attempts == {b"1"}
    assert [row["number"] for row in rows] == [0, 1, 2]


async def test_an_outage_of_nats_loses_and_doubles_nothing(
    nats: NatsServer, asker: Broker, tmp_path: Path
) -> None:
    environment = served_by(tmp_path, nats)
    with serving(tmp_path, "work.yaml", environment=environment) as served:
        async with listening(asker, "began") as began:
            for _ in range(3):
                await asker.publish("tasks", b"0.5")
            for _ in range(3):
                await began.get()
        nats.kill()
        await asyncio.to_thread(waits, served)
        nats.start()
        await wait_until_settled(asker, "TASKS", "work")

    assert await done_by(asker) == [b"1", b"1", b"1"]
    assert await stored.last_sequence(asker, "DEAD_LETTERS") == 0


async def done_by(broker: Broker) -> list[bytes]:
    """The attempt that succeeded, for each message."""
    return [message.data async for message in stored.scan(broker, "DONE", "done")]


def waits(served: Served) -> None:
    served.wait_for("Functions wait for a server that does not answer")
