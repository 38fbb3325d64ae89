"""Hosts that are restarted one after the other, as a deployment does, while messages flow."""

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import consumer, fresh, letters_of, wait_until_settled
from tests.support.servers import NatsServer
from tests.support.serving import Served, serving

pytestmark = pytest.mark.timeout(240)

RESTARTS = 10
GRACE_S = "0.5"
SHORT_S, LONG_S = 0.05, 1.2
AHEAD = 20
MODULE = """
import asyncio
from typing import Any
from runtime import Batch, Context, Event

async def work(event: Event[dict[str, Any]], ctx: Context) -> None:
    note = f"began.{ctx.function}"
    await ctx.publish_core(note, b"%d %d" % (event.data["number"], event.attempt))
    await asyncio.sleep(event.data["takes_s"])

async def work_batch(batch: Batch[dict[str, Any]], ctx: Context) -> None:
    await asyncio.gather(*(work(event, ctx) for event in batch))
"""


class Flow:
    """Messages without end, a few more than the slowest function has begun; and what was begun."""

    def __init__(self, broker: Broker, stream: str, functions: list[str]) -> None:
        self.began: dict[str, list[tuple[int, int]]] = {name: [] for name in functions}
        self._broker = broker
        self._subject = f"{stream}.a"
        self._ended = False
        self._changed = asyncio.Event()

    def note(self, message: Message) -> None:
        number, attempt = map(int, message.data.split())
        self.began[message.subject.removeprefix("began.")].append((number, attempt))
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def run(self) -> int:
        """Publish until it is ended; how many there were."""
        number = 0
        while not self._ended:
            if number >= min(map(len, self.began.values())) + AHEAD:
                self._changed.clear()
                await self._changed.wait()
                continue
            # One in twenty takes longer than a host may drain.
            takes_s = LONG_S if number % 20 == 0 else SHORT_S
            data = json.dumps({"number": number, "takes_s": takes_s}).encode()
            await self._broker.publish(self._subject, data)
            number += 1
        return number


def write_project(folder: Path, stream: str, functions: dict[str, dict[str, Any]]) -> None:
    """Functions that get two attempts and no second chance; JSON is YAML."""
    stated = {
        name: {
            "handler": "rolling:work",
            "consumer": {"stream": stream},
            "retry": {"attempts": 2, "delay": "50ms"},
            **spec,
        }
        for name, spec in functions.items()
    }
    manifest = {"streams": {stream: {"subjects": [f"{stream}.>"]}}, "functions": stated}
    (folder / "rolling.py").write_text(MODULE)
    (folder / "app.yaml").write_text(json.dumps(manifest))


async def test_ten_rolling_restarts_use_up_no_attempt(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    stream = fresh("ROLLING")
    names = {kind: f"{stream}_{kind}" for kind in ("single", "batch", "isolated")}
    functions: dict[str, dict[str, Any]] = {
        names["single"]: {"concurrency": 4},
        names["batch"]: {
            "handler": "rolling:work_batch",
            "batch": {"size": 5, "wait": "20ms"},
            "concurrency": 2,
        },
        names["isolated"]: {"isolate": True, "concurrency": 4},
    }
    write_project(tmp_path, stream, functions)
    environment = {
        "NATS_URL": nats_server.url,
        "DATABASE_URL": "unused",
        "RUNTIME_GRACE_S": GRACE_S,
    }
    flow = Flow(broker, stream, list(functions))
    await broker.subscribe("began.*", flow.note)
    handed_over = 0
    async with AsyncExitStack() as hosts:
        running = [
            await hosts.enter_async_context(serving(tmp_path, **environment)) for _ in range(2)
        ]
        for host in running:
            await wait_until_serving(host)
        flowing = asyncio.create_task(flow.run())
        for _ in range(RESTARTS):
            oldest = running.pop(0)
            oldest.send(signal.SIGTERM)
            assert await oldest.wait_until_ended() == 0, oldest.text
            handed_over += oldest.text.count("Not finished in time, given back")
            running.append(await hosts.enter_async_context(serving(tmp_path, **environment)))
            await wait_until_serving(running[-1])
        flow.end()
        published = await flowing
        for name in functions:
            await wait_until_settled(broker, stream, name)
            await wait_until_settled(broker, "MAILBOX", name)

    assert handed_over
    for name in functions:
        assert {number for number, _ in flow.began[name]} == set(range(published)), name
        assert {attempt for _, attempt in flow.began[name]} == {1}, name
        assert await letters_of(broker, name) == []
        assert (await consumer(broker, stream, name))["num_redelivered"] == 0


async def wait_until_serving(host: Served) -> None:
    """Return when both its processes are ready: that of the isolated function, and the other."""
    await host.wait_for_line("Ready", count=3)
