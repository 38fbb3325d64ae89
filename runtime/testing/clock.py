"""A clock of the event loop that stands still, and moves only when a test moves it.

All timers of the loop follow it: delays of retries, time limits, ack waits, schedules. Between two
timers everything that can run does run, so timers fire in order, each with its consequences.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, TypeVar
from weakref import WeakSet

from runtime.testing.errors import TestKitError

T = TypeVar("T")

REST_LIMIT_S = 10.0
"""Real seconds within which the loop must come to rest."""
OUTSIDE_LIMIT_S = 30.0
"""Real seconds that a thread or a connection of a function may take."""
SOCKET_PATIENCE_S = 0.25
"""Real seconds without an event on a function's connections after which none is expected."""
_PAUSE_S = 0.001
_CLEAN_UP_STEPS = 10_000
_WAKE_UP = "_set_result_unless_cancelled"
"""The name of asyncio's function that ends a sleep."""
_ROUNDING_S = 0.001
"""Two waits of 2 s and 4 s are over after 6 s, although each is rounded up by a microsecond."""

_clocks: dict[int, "FakeClock"] = {}


class FakeClock:
    """Stops the clock of the running loop until `release`; all hosts of a loop share one.

    Uses the loop's own lists of ready and scheduled calls: asyncio has no other way to find out
    that nothing is left to run.
    """

    def __init__(self, loop: Any) -> None:  # noqa: ANN401 - its private parts are used
        self._loop: Any = loop
        if not hasattr(loop, "_ready") or not hasattr(loop, "_scheduled"):
            raise TestKitError(
                f"the clock of {type(loop).__module__}.{type(loop).__name__} cannot be stopped; "
                "use asyncio's own event loop, or run the test on a real server"
            )
        self._users = 0
        self._threads = 0
        self._tests: WeakSet[Any] = WeakSet()
        self._now_s: float = loop.time()
        self._baseline = len(self._loop._selector.get_map())  # noqa: SLF001
        self._run_in_executor: Callable[..., Any] = loop.run_in_executor

    @classmethod
    def acquire(cls) -> "FakeClock":
        """The stopped clock of the running loop."""
        loop = asyncio.get_running_loop()
        clock = _clocks.get(id(loop))
        if clock is None:
            clock = _clocks[id(loop)] = cls(loop)
            clock._install()
        clock._users += 1
        clock._tests.add(asyncio.current_task())
        return clock

    def release(self) -> None:
        """Let the clock run again when no host uses it any more; it never goes back."""
        self._users -= 1
        if self._users:
            return
        del _clocks[id(self._loop)], self._loop.time, self._loop.run_in_executor
        del self._loop.call_at
        ahead_s = self._now_s - self._loop.time()
        if ahead_s > 0:
            real = self._loop.time
            self._loop.time = lambda: real() + ahead_s

    async def rest(self) -> None:
        """Return when nothing is left to run before the clock moves.

        Raises:
            TestKitError: the loop does not come to rest.
        """
        until_s = time.monotonic() + REST_LIMIT_S
        quiet = 0
        while quiet < 2:  # noqa: PLR2004 - events of sockets come with the turn after
            await asyncio.sleep(0)
            quiet = 0 if self._loop._ready else quiet + 1  # noqa: SLF001
            if time.monotonic() > until_s:
                raise TestKitError(
                    f"the event loop did not come to rest within {REST_LIMIT_S:g} s: some code "
                    "runs in a circle without waiting for anything"
                )

    async def rest_outside_too(self, *, may_use_sockets: bool) -> None:
        """As `rest`, and wait in real time for threads, and for connections of functions."""
        await self.rest()
        began_s = heard_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            waits_for_sockets = (
                may_use_sockets and self._has_sockets() and now_s - heard_s < SOCKET_PATIENCE_S
            )
            if not self._threads and not waits_for_sockets:
                return
            if now_s - began_s > OUTSIDE_LIMIT_S:
                raise TestKitError(
                    f"a plain function runs in a thread for more than {OUTSIDE_LIMIT_S:g} s"
                )
            time.sleep(_PAUSE_S)  # noqa: ASYNC251 - the loop has nothing else to do
            await asyncio.sleep(0)
            if self._loop._ready:  # noqa: SLF001
                heard_s = time.monotonic()
                await self.rest()

    def step(self, until_s: float = float("inf")) -> bool:
        """Move the clock to the next timer; False when there is none until `until_s`."""
        due = [each.when() for each in self._loop._scheduled if not each.cancelled()]  # noqa: SLF001
        if not due or min(due) > until_s:
            return False
        self._now_s = max(self._now_s, min(due))
        return True

    async def advance(self, seconds: float) -> None:
        """Move the clock, and fire everything that becomes due, in order."""
        until_s = self._now_s + seconds
        await self.rest_outside_too(may_use_sockets=False)
        while self.step(until_s + _ROUNDING_S):
            await self.rest_outside_too(may_use_sockets=False)
        self._now_s = max(self._now_s, until_s)
        await self.rest()

    async def run(self, work: Awaitable[T], limit_s: float) -> T:
        """Await `work`, moving the clock whenever nothing else can happen.

        Raises:
            TestKitError: `work` had not ended after `limit_s` of this clock.
        """
        task = asyncio.ensure_future(work)
        until_s = self._now_s + limit_s
        try:
            while True:
                await self.rest()
                if not task.done():
                    await self.rest_outside_too(may_use_sockets=True)
                if task.done():
                    return task.result()
                if not self.step(until_s):
                    raise TestKitError(f"not done after {limit_s:g} s of the host's clock")
        finally:
            if not task.done():
                task.cancel()
                await self._until_ended(task)

    def now_s(self) -> float:
        """The loop's time."""
        return self._now_s

    async def _until_ended(self, task: "asyncio.Future[Any]") -> None:
        """Wait for a cancelled task, whose clean-up may need time too."""
        for _ in range(_CLEAN_UP_STEPS):
            await asyncio.sleep(0)
            if task.done():
                return
            if not self._loop._ready:  # noqa: SLF001
                self.step()

    def _call_at(self, when: float, callback: Callable[..., Any], *args: Any, **named: Any) -> Any:  # noqa: ANN401 - the loop's own
        is_sleep = getattr(callback, "__name__", "") == _WAKE_UP
        if is_sleep and asyncio.current_task(self._loop) in self._tests:
            raise TestKitError(
                "the clock stands still, so a sleep of the test would never end: "
                "use `await host.advance(…)`"
            )
        return type(self._loop).call_at(self._loop, when, callback, *args, **named)

    def _install(self) -> None:
        self._loop.time = self.now_s

        def run_in_executor(
            executor: Executor | None,
            func: Callable[..., Any],
            *args: Any,  # noqa: ANN401
        ) -> "asyncio.Future[Any]":
            future: asyncio.Future[Any] = self._run_in_executor(executor, func, *args)
            self._threads += 1
            future.add_done_callback(self._thread_ended)
            return future

        self._loop.run_in_executor = run_in_executor
        self._loop.call_at = self._call_at

    def _thread_ended(self, _future: "asyncio.Future[Any]") -> None:
        self._threads -= 1

    def _has_sockets(self) -> bool:
        return len(self._loop._selector.get_map()) > self._baseline  # noqa: SLF001
