"""Threads for plain functions, so that none of them keeps the loop or the others waiting."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import ParamSpec, TypeVar

from runtime.call_task import EndedItself, failure_of
from runtime.observe.logs import get_logger

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger("runtime.threads")

SPARE = 32
"""Threads beyond a function's concurrency: for calls that were given up and still run."""
REPORT_AGAIN_S = 60.0
"""How often the log says at most that a function has no thread left."""

_Call = tuple["Future[object]", Callable[[], object]]


class FunctionThreads(Executor):
    """The threads of one function, made when they are needed.

    One pool for each function: calls that never end use up their own function's threads alone. They
    are daemons, because nothing can end a thread, and one that hangs must not keep the process from
    ending, for which the standard library's pool waits.

    All methods are to be called on the event loop's thread.

    Attributes:
        function: its name.
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

    @property
    def has_room(self) -> bool:
        """Whether a call would begin at once: a thread is idle, or another one may be made."""
        return self._idle > 0 or self._count < self._most

    async def wait_for_thread(self) -> None:
        """Return when a call would begin at once.

        A call that waits in a queue would use up its time, and an attempt, before it has begun.
        """
        while not self.has_room:
            self._report()
            self._freed.clear()
            await self._freed.wait()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run `fn` in a thread, or queue it when there is none."""
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
        """Let the threads end that are idle; whatever still runs is left behind."""
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
                return  # The loop has been closed: the host ended before this call did.


def _settle(future: "Future[object]", work: Callable[[], object]) -> None:
    try:
        result = work()
    except StopIteration as stray:
        # A future cannot carry it; a coroutine turns it into the same.
        failure = RuntimeError("the function raised StopIteration")
        failure.__cause__ = stray
        future.set_exception(failure)
    except CancelledError:
        # Of a future of the function's own: the caller's future would take it for its own end.
        future.set_exception(EndedItself("the function raised CancelledError"))
    except BaseException as raised:  # noqa: BLE001 - whatever it is, the caller learns of it
        # What is no `Exception` would end the task that waits for it, or even the loop.
        future.set_exception(failure_of(raised, None))
    else:
        future.set_result(result)


__all__ = ["SPARE", "FunctionThreads"]
