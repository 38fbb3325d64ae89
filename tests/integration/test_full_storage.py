"""A full JetStream: it answers every request, but stores nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from runtime.errors import PublishFailed, Unavailable
from tests.support.cluster import NatsNode
from tests.support.documentation import free_port
from tests.support.host import Journal, eventually, fresh, running_host

ROOM_BYTES = 1_000_000


@pytest.fixture
async def little_url(server_directory: Path) -> AsyncIterator[str]:
    """The address of a server whose store holds a megabyte."""
    port = free_port()
    config = server_directory / "little.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    store = server_directory / "store"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream {{ store_dir: "{store}", max_file_store: {ROOM_BYTES} }}\n'
    )
    node = NatsNode("little", port, config)
    node.start()

    async def answers() -> bool:
        try:
            broker = await Broker.connect(node.url, name="test")
        except Unavailable:
            return False
        await broker.close()
        return True

    await eventually(answers, "a server")
    yield node.url
    node.stop()


async def _fill(broker: Broker, subject: str) -> None:
    for _ in range(2 * ROOM_BYTES // 100_000):
        await broker.publish(subject, b"x" * 100_000)


async def test_a_host_is_not_ready_while_what_it_publishes_finds_no_room(
    little_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.probes.STORAGE_FULL_S", 0.5)
    stream, journal = fresh("S"), Journal()
    streams = {
        stream: {"subjects": [f"{stream}.>"]},
        # The server promises each stream the room that its limit names.
        "DEAD_LETTERS": {"subjects": ["dead_letters.>"], "max_bytes": ROOM_BYTES // 10},
    }
    serve = fresh("serve")

    async def run(ctx: object) -> None:
        journal.add("runs")
        await asyncio.Event().wait()

    functions = {serve: {"handler": "run", "service": True}}
    async with running_host(
        little_url, functions, {serve: run}, streams=streams, grace_s=0.1
    ) as host:
        await journal.wait(1)
        broker = host._broker
        assert broker is not None
        before = await host.probes.check_nats()
        with pytest.raises(PublishFailed):
            await _fill(broker, f"{stream}.a")
        full = await host.probes.check_nats()

        async def forgotten() -> bool:
            return await host.probes.check_nats() is None

        await eventually(forgotten, "another chance")

    assert before is None
    assert full == "STORAGE_FULL"
