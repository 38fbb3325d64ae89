"""An exception in a task of a function does not end the host's process."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from tests.support.host import wait_for_letters
from tests.support.servers import NatsServer
from tests.support.serving import serving

MODULE = """
import asyncio
from runtime import Context, Event

async def child(name: str) -> None:
    raise {"KeyboardInterrupt": KeyboardInterrupt, "SystemExit": SystemExit}[name]()

async def awaits(event: Event[str], ctx: Context) -> None:
    if event.data:
        await asyncio.create_task(child(event.data))
    await ctx.publish_core("seen", event.raw)

async def forgets(event: Event[str], ctx: Context) -> None:
    if event.data:
        asyncio.create_task(child(event.data))
    await ctx.publish_core("seen", event.raw)
"""
MANIFEST = """
streams:
  TASKS: {subjects: [awaits, forgets]}
functions:
  awaits:
    handler: odd:awaits
    consumer: {stream: TASKS, filter_subjects: [awaits]}
    retry: {attempts: 2, delay: 10ms}
  forgets:
    handler: odd:forgets
    consumer: {stream: TASKS, filter_subjects: [forgets]}
"""


@pytest.fixture
async def own_server(server_directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


@pytest.mark.parametrize("arguments", [(), ("app.yaml", "--workers", "2")])
async def test_a_task_of_a_function_that_raises_keyboard_interrupt_ends_no_host(
    tmp_path: Path, own_server: NatsServer, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "odd.py").write_text(MODULE)
    (tmp_path / "app.yaml").write_text(MANIFEST)
    served_by = {"NATS_URL": own_server.url, "DATABASE_URL": "unused"}
    broker = await Broker.connect(own_server.url, name="test")
    async with serving(tmp_path, *arguments, **served_by) as served:
        await served.wait_for_line("Ready")
        told = "A task raised what would have ended the host"
        for name in ("KeyboardInterrupt", "SystemExit"):
            await broker.publish("awaits", json.dumps(name).encode())
            await served.wait_for_line(told, error_type=name)
            await broker.publish("forgets", json.dumps(name).encode())
        letters = await wait_for_letters(broker, "awaits", 2)
        assert served.process.returncode is None
        served.process.terminate()
        assert await served.wait_until_ended() == 0
    await broker.close()

    assert {letter.error_type for letter in letters} == {"EndedItself"}
    assert "A worker ended" not in served.text
