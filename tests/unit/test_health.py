import asyncio
import selectors
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import structlog
import uvloop
from structlog.typing import EventDict, WrappedLogger

from runtime.errors import Unavailable
from runtime.observe.health import Check, LoopWatch, Probe, Readiness
from runtime.observe.metrics import Metrics

DEADLINE_S = 60.0


class Lines:
    """Records log lines from any thread, and waits for them."""

    def __init__(self) -> None:
        self.written: list[EventDict] = []
        self._waiters: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        self.written.append({**event, "level": method})
        for start, loop, seen in self._waiters:
            if event["event"].startswith(start):
                loop.call_soon_threadsafe(seen.set)
        raise structlog.DropEvent

    async def wait_for(self, start: str) -> EventDict:
        seen = asyncio.Event()
        self._waiters.append((start, asyncio.get_running_loop(), seen))
        if not any(line["event"].startswith(start) for line in self.written):
            await asyncio.wait_for(seen.wait(), DEADLINE_S)
        return next(line for line in self.written if line["event"].startswith(start))


@pytest.fixture
def lines() -> Iterator[Lines]:
    processors = structlog.get_config()["processors"]
    former = list(processors)
    capture = Lines()
    processors[:] = [capture]
    yield capture
    processors[:] = former


async def passes() -> str | None:
    return None


def raising(error: Exception) -> Probe:
    async def probe() -> str | None:
        raise error

    return probe


async def hangs() -> str | None:
    await asyncio.Event().wait()
    return None


async def returns_code() -> str | None:
    return "STOPPED"


async def test_each_probe_is_told_by_a_code_that_holds_no_internals(lines: Lines) -> None:
    probes: dict[str, Probe] = {
        "nats": passes,
        "postgres": raising(Unavailable("PostgreSQL", "10.0.0.7 refused me:hunter2")),
        "functions": returns_code,
        "gateway": hangs,
        "other": raising(ValueError("hunter2")),
    }
    assert await Readiness(probes, timeout_s=0.05).checks() == {
        "nats": Check(ok=True, detail="OK"),
        "postgres": Check(ok=False, detail="UNAVAILABLE"),
        "functions": Check(ok=False, detail="STOPPED"),
        "gateway": Check(ok=False, detail="TIMEOUT"),
        "other": Check(ok=False, detail="FAILED"),
    }
    assert any(line["event"] == "A probe failed" for line in lines.written)


async def test_callers_that_come_together_share_one_run() -> None:
    runs = 0

    async def counted() -> str | None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        return None

    readiness = Readiness({"nats": counted})
    await asyncio.gather(*(readiness.checks() for _ in range(50)))
    assert runs == 1


async def test_a_function_that_blocks_the_loop_is_named_with_its_stack(lines: Lines) -> None:
    metrics = Metrics("1.0.0")
    reported = threading.Event()

    def running() -> str:
        reported.set()
        return "ingest"

    async def hold_the_loop() -> None:
        assert reported.wait(DEADLINE_S)

    watch = LoopWatch(metrics, running=running, threshold_s=0.05)
    watch.start()
    try:
        await asyncio.create_task(hold_the_loop(), name="ingest worker 3")
        block = await lines.wait_for("A function blocks the event loop")
        end = await lines.wait_for("The event loop runs again")
    finally:
        watch.stop()
    assert block["level"] == "warning"
    assert block["function"] == "ingest"
    assert block["task"] == "ingest worker 3"
    assert "in hold_the_loop" in block["stack"]
    assert end["function"] == "ingest"
    assert end["blocked_s"] > 0.05
    assert metrics.loop_blocks == 1
    assert metrics.loop_lag_s > 0.05


async def test_a_block_is_reported_again_when_it_has_lasted_twice_as_long(lines: Lines) -> None:
    reports = threading.Semaphore(0)

    def running() -> str:
        reports.release()
        return "ingest"

    watch = LoopWatch(Metrics("1.0.0"), running=running, threshold_s=0.05)
    watch.start()
    try:
        for _ in range(2):
            assert reports.acquire(timeout=DEADLINE_S)
        await lines.wait_for("The event loop runs again")
    finally:
        watch.stop()
    first, second = (
        line["blocked_s"] for line in lines.written if line["event"].startswith("A function")
    )
    assert second >= 2 * first - 0.002


async def test_a_wait_inside_a_blocking_library_is_no_idle_loop(lines: Lines) -> None:
    reported = threading.Event()
    near, far = socket.socketpair()

    def running() -> str:
        reported.set()
        far.send(b"x")
        return "ingest"

    watch = LoopWatch(Metrics("1.0.0"), running=running, threshold_s=0.05)
    watch.start()
    try:
        with near, far:
            with selectors.DefaultSelector() as selector:
                selector.register(near, selectors.EVENT_READ)
                assert selector.select(DEADLINE_S)
            await lines.wait_for("A function blocks the event loop")
    finally:
        watch.stop()
    assert reported.is_set()


class Unbeaten(LoopWatch):
    """A watchdog whose timer does not run, as if the whole process had been stopped."""

    async def first_report(self) -> bool:
        loop = asyncio.get_running_loop()
        self.found: asyncio.Future[bool] = loop.create_future()
        self.start()
        assert self._timer is not None
        self._timer.cancel()
        try:
            return await asyncio.wait_for(self.found, DEADLINE_S)
        finally:
            self.stop()

    def _report(self, blocked_s: float) -> bool:
        reported = super()._report(blocked_s)
        loop = self.found.get_loop()
        loop.call_soon_threadsafe(self._tell, reported)
        return reported

    def _tell(self, reported: bool) -> None:
        if not self.found.done():
            self.found.set_result(reported)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
async def test_no_function_is_named_while_the_loop_only_waits(
    lines: Lines, run: Callable[[Coroutine[Any, Any, bool]], bool]
) -> None:
    watch = Unbeaten(Metrics("1.0.0"), threshold_s=0.05)
    assert await asyncio.to_thread(run, watch.first_report()) is False
    assert lines.written == []


async def test_a_failing_name_does_not_end_the_watch(lines: Lines) -> None:
    failed = threading.Event()

    def running() -> str:
        failed.set()
        raise KeyError

    watch = LoopWatch(Metrics("1.0.0"), running=running, threshold_s=0.05)
    watch.start()
    try:
        assert failed.wait(DEADLINE_S)
        block = await lines.wait_for("A function blocks the event loop")
    finally:
        watch.stop()
    assert block["function"] == ""


async def test_a_failing_limit_does_not_end_the_watch(lines: Lines) -> None:
    asked = threading.Semaphore(0)

    def limit_s() -> float | None:
        asked.release()
        raise KeyError

    watch = LoopWatch(Metrics("1.0.0"), limit_s=limit_s, threshold_s=0.05)
    watch.start()
    try:
        again = [await asyncio.to_thread(asked.acquire, timeout=DEADLINE_S) for _ in range(2)]
    finally:
        watch.stop()
    assert again == [True, True]
    assert lines.written[0]["event"] == "The event loop's watchdog failed once, and goes on"


async def test_a_loop_that_turns_is_not_late(lines: Lines) -> None:
    watch = LoopWatch(Metrics("1.0.0"))
    watch.start()
    assert watch.lag_s < 1.0
    watch.stop()
    assert lines.written == []


async def test_stopping_ends_the_thread() -> None:
    watch = LoopWatch(Metrics("1.0.0"))
    watch.start()
    assert "loop-watch" in {thread.name for thread in threading.enumerate()}
    watch.stop()
    assert "loop-watch" not in {thread.name for thread in threading.enumerate()}
