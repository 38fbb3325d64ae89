"""5,000 messages a second flow while files change 50 times, half of the times broken."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from runtime.broker.connection import Broker
from runtime.message import Message
from tests.support.host import fresh
from tests.support.servers import NatsServer
from tests.support.serving import Served, serving

RATE = 5_000
CHANGES = 50
TICK_S = 0.01
LATE_S = 5.0
"""How long after a save an older version may still begin a call, on a machine that is busy."""

MODULE = """
import time
from runtime import Context, Event
from helper_STREAM import VERSION

async def work(event: Event[bytes], ctx: Context) -> None:
    # The late import must be of the same version as the one above.
    from helper_STREAM import VERSION as late
    assert late == VERSION
    told = f"{event.data.decode()} {VERSION} {ctx.attempt} {time.time()}"
    await ctx.publish_core("seen.STREAM", told.encode())
"""
MANIFEST = """
streams:
  STREAM: {subjects: ["STREAM.>"], max_bytes: 100MB}
functions:
  work:
    handler: work_STREAM:work
    consumer: {stream: STREAM, durable: work_STREAM}
    concurrency: 32
"""


class Call(NamedTuple):
    """What one call of the function told."""

    message: int
    version: int
    attempt: int
    at_s: float


class Flow:
    """Publishes messages at a rate, and keeps what the function told of each."""

    def __init__(self, broker: Broker, stream: str) -> None:
        self.calls: list[Call] = []
        self.sent = 0
        self._broker = broker
        self._stream = stream
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        await self._broker.subscribe(f"seen.{self._stream}", self._take)

    async def publish_until(self, done: asyncio.Event) -> None:
        began_s = time.monotonic()
        while not done.is_set():
            wanted = int((time.monotonic() - began_s) * RATE)
            while self.sent < wanted:
                await self._broker.publish_core(f"{self._stream}.x", str(self.sent).encode())
                self.sent += 1
            await asyncio.sleep(TICK_S)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _take(self, message: Message) -> None:
        number, version, attempt, at_s = message.data.decode().split()
        self.calls.append(Call(int(number), int(version), int(attempt), float(at_s)))
        self._changed.set()


def save(file: Path, text: str) -> float:
    """Save as an editor does, by a rename; return when."""
    new = file.with_suffix(".tmp")
    new.write_text(text)
    at_s = time.time()
    new.replace(file)
    return at_s


async def change(served: Served, helper: Path) -> dict[int, float]:
    """Save good and broken versions in turn, each when the one before has been taken up."""
    saved: dict[int, float] = {}
    for number in range(1, CHANGES + 1):
        if number % 2:
            save(helper, f"VERSION = {number}\nbroken(\n")
            await served.wait_for_line(
                "Not reloaded, the last good version runs on", count=number // 2 + 1
            )
        else:
            saved[number] = save(helper, f"VERSION = {number}\n")
            await served.wait_for_line("Swapped", count=number // 2)
    return saved


async def test_every_message_is_handled_once_by_a_version_that_was_on_disk_at_that_time(
    tmp_path: Path, nats_server: NatsServer, broker: Broker
) -> None:
    stream = fresh("LOAD")
    helper = tmp_path / f"helper_{stream}.py"
    saved = {0: save(helper, "VERSION = 0\n")}
    save(tmp_path / f"work_{stream}.py", MODULE.replace("STREAM", stream))
    save(tmp_path / "app.yaml", MANIFEST.replace("STREAM", stream))
    flow, done = Flow(broker, stream), asyncio.Event()
    await flow.listen()
    async with serving(tmp_path, "app.yaml", "--reload", NATS_URL=nats_server.url) as served:
        await served.wait_for_line("Ready")
        publishing = asyncio.create_task(flow.publish_until(done))
        began_s = time.monotonic()
        saved |= await change(served, helper)
        await flow.wait_for(lambda: flow.calls[-1].version == CHANGES)
        seconds = time.monotonic() - began_s
        done.set()
        await publishing
        await flow.wait_for(lambda: len(flow.calls) >= flow.sent)
    await broker.api(f"STREAM.DELETE.{stream}")

    assert flow.sent >= RATE * seconds * 0.9
    handled = Counter(call.message for call in flow.calls)
    assert handled == Counter(range(flow.sent))
    assert {call.attempt for call in flow.calls} == {1}
    assert {call.version for call in flow.calls} == saved.keys()
    replaced = dict(zip(saved, [*list(saved.values())[1:], float("inf")], strict=True))
    for call in flow.calls:
        assert saved[call.version] <= call.at_s <= replaced[call.version] + LATE_S
    assert "Traceback" not in served.text
