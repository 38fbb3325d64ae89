"""Thread pool of one plain function; its calls block neither the loop nor other functions."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import ParamSpec, TypeVar

from runtime.call.call_task import EndedItself, failure_of
from runtime.observe.logs import get_logger, running_function

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger("runtime.threads")

SPARE = 32
"""Threads beyond a function's concurrency, for calls that timed out and still run."""
REPORT_AGAIN_S = 60.0
"""Least time between two log lines that a function has no thread left."""

_Call = tuple["Future[object]", Callable[[], object]]


class FunctionThreads(Executor):
    """Thread pool of one function; threads are started on demand.

    Each function has its own pool, so calls that never end use up only their own function's
    threads. The threads are daemons: a thread cannot be ended, and the standard library's pool
    would wait at the process's end for a thread that hangs.

    All methods must be called on the event loop's thread.

    Attributes:
        function: the function's name.
    """

    def __init__(self, function: str, concurrency: int) -> None:
        self.function = function
        self._most = concurrency + SPARE
        self._count = 0
        self._idle = 0  # Below 0: calls are queued.
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._freed = asyncio.Event()
        self._silent_until_s = 0.0

    def resize(self, concurrency: int) -> None:
        """Follow a changed concurrency; threads that are too many stay until `shutdown`."""
        self._most = concurrency + SPARE
        if self.has_room:
            self._freed.set()

    @property
    def has_room(self) -> bool:
        """Whether a call would begin at once: a thread is idle, or another may be started."""
        return self._idle > 0 or self._count < self._most

    async def wait_for_thread(self) -> None:
        """Return when a call would begin at once.

        A call in a queue would use up its time limit, and an attempt, before it has begun.
        """
        while not self.has_room:
            self._report()
            self._freed.clear()
            await self._freed.wait()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run `fn` in a thread, or queue it when no thread is free."""
        future: Future[T] = Future()
        with self._lock:
            starts = self._idle <= 0 and self._count < self._most
            if starts:
                self._count += 1
            else:
                self._idle -= 1
        self._calls.put((future, lambda: fn(*args, **kwargs)))  # type: ignore[arg-type]
        if starts:
            name = f"{self.function}-{self._count}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """End the idle threads; threads that still run a call are left."""
        for _ in range(self._count):
            self._calls.put(None)

    def _report(self) -> None:
        now_s = self._loop.time()
        if now_s < self._silent_until_s:
            return
        self._silent_until_s = now_s + REPORT_AGAIN_S
        log.error(
            "Calls that do not end have taken all threads of a function, its messages wait",
            function=self.function,
            threads=self._most,
        )

    def _run(self) -> None:
        running_function.set(self.function)
        while (call := self._calls.get()) is not None:
            future, work = call
            if future.set_running_or_notify_cancel():
                _settle(future, work)
            del call, future, work
            self._free()

    def _free(self) -> None:
        with self._lock:
            self._idle += 1
            has_room_again = self._idle == 1 and self._count >= self._most
        if has_room_again:
            try:
                self._loop.call_soon_threadsafe(self._freed.set)
            except RuntimeError:
                return  # The loop is closed: the host stopped before this call ended.


def _settle(future: "Future[object]", work: Callable[[], object]) -> None:
    try:
        result = work()
    except StopIteration as stray:
        # A future cannot carry StopIteration; a coroutine converts it to the same error.
        failure = RuntimeError("the function raised StopIteration")
        failure.__cause__ = stray
        future.set_exception(failure)
    except CancelledError:
        # From a future of the function: set on the caller's future, it would cancel the caller.
        future.set_exception(EndedItself("the function raised CancelledError"))
    except BaseException as raised:  # noqa: BLE001 - whatever it is, the caller learns of it
        # A `BaseException` that is not an `Exception` would end the waiting task, or even the loop.
        future.set_exception(failure_of(raised, None))
    else:
        future.set_result(result)


__all__ = ["SPARE", "FunctionThreads"]
