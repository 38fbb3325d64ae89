"""Threads for plain functions, so that none of them keeps the loop or the others waiting."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SPARE = 32
"""Threads beyond a function's concurrency: for calls that were given up and still run."""

_Call = tuple["Future[object]", Callable[[], object]]


class FunctionThreads(Executor):
    """The threads of one function, made when they are needed.

    One pool for each function: calls that never end use up their own function's threads alone. They
    are daemons, because nothing can end a thread, and one that hangs must not keep the process from
    ending, for which the standard library's pool waits.
    """

    def __init__(self, function: str, concurrency: int) -> None:
        self._function = function
        self._most = concurrency + SPARE
        self._count = 0
        self._idle = threading.Semaphore(0)
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run `fn` in a thread. To be called on the event loop's thread alone."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))  # type: ignore[arg-type]
        if not self._idle.acquire(blocking=False) and self._count < self._most:
            self._count += 1
            name = f"{self._function}-{self._count}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Let the threads end that are idle; whatever still runs is left behind."""
        for _ in range(self._count):
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            future, work = call
            if future.set_running_or_notify_cancel():
                _settle(future, work)
            del call, future, work
            self._idle.release()


def _settle(future: "Future[object]", work: Callable[[], object]) -> None:
    try:
        result = work()
    except StopIteration as stray:
        # A future cannot carry it; a coroutine turns it into the same.
        failure = RuntimeError("the function raised StopIteration")
        failure.__cause__ = stray
        future.set_exception(failure)
    except BaseException as failure:  # noqa: BLE001 - whatever it is, the caller learns of it
        future.set_exception(failure)
    else:
        future.set_result(result)


__all__ = ["SPARE", "FunctionThreads"]
