"""Time limit of all calls of one function, with one timer for the oldest call."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from runtime.call.call_task import (
    CANCELLED_ITSELF,
    EndedItself,
    failure_of,
    is_cancelled_by_host,
    take_back_own_cancels,
)

T = TypeVar("T")


class TimeLimitExceeded(Exception):  # noqa: N818 - names what happened
    """The function ran longer than its manifest allows."""


class TimeLimit:
    """Cancels the calls of one function that run longer than its time limit.

    All calls have the same limit, so the call that began first is due first, and one timer for the
    oldest call serves all. A timer for each call, as in `asyncio.timeout`, cost 4 of the 15 µs that
    a message of an empty function took.

    Args:
        limit_s: how long a call may take.
        has_waited: whether a task's call waits, or waited since the last check, for a resource that
            other calls of the function hold. Such a call starts its time anew at its deadline.

    Attributes:
        limit_s: how long a call may take.
        exceeded: number of calls that took longer.
    """

    def __init__(
        self, limit_s: float, has_waited: Callable[["asyncio.Task[Any]"], bool] | None = None
    ) -> None:
        self.limit_s = limit_s
        self._has_waited = has_waited
        self.exceeded = 0
        self._loop = asyncio.get_running_loop()
        self._due_at_s: dict[asyncio.Task[object], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def enforce(self, call: Awaitable[T], deadline_s: float) -> T:
        """Await `call`, at most until `deadline_s` on the loop's clock.

        A task must have one call at a time, and a later call no earlier deadline. The task goes on
        whatever the call raises, and also when the call cancels its own task.

        Raises:
            TimeLimitExceeded: the call took longer, and was cancelled.
            EndedItself: the call cancelled its own task, or raised a `BaseException` that is not an
                `Exception`.
            CancelledError: the host cancelled the task.
            Exception: the exception that the call raised.
        """
        task: asyncio.Task[object] = asyncio.current_task(self._loop)  # type: ignore[assignment]
        self._due_at_s[task] = deadline_s
        if self._timer is None:
            # The timer cancels calls for the host, so its context must not be that of a call.
            context = contextvars.Context()
            self._timer = self._loop.call_at(deadline_s, self._end_overdue, context=context)
        try:
            result = await call
        except asyncio.CancelledError as raised:
            failure = await self._judge_cancel(task)
            if failure is None:
                raise  # The host has cancelled the task too.
            raise failure from raised
        except BaseException as raised:
            self._forget(task)
            failed = failure_of(raised, task)
            if task.cancelling():
                await take_back_own_cancels(task)
            if failed is raised:
                raise
            raise failed from raised
        self._forget(task)
        if task.cancelling() and await take_back_own_cancels(task):
            raise EndedItself(CANCELLED_ITSELF)
        return result

    def stop(self) -> None:
        """Cancel the timer, which would keep this object alive, when there is no call any more."""
        if self._timer is not None and not self._due_at_s:
            self._timer.cancel()
            self._timer = None

    async def _judge_cancel(self, task: "asyncio.Task[object]") -> Exception | None:
        """The failure of a call that ended with a cancellation; None when the host cancelled it."""
        is_in_time = self._forget(task)
        if is_cancelled_by_host(task):
            return None
        await take_back_own_cancels(task)
        if is_in_time:
            return EndedItself(CANCELLED_ITSELF)
        self.exceeded += 1
        return TimeLimitExceeded(f"the function ran longer than its limit of {self.limit_s:g} s")

    def _forget(self, task: "asyncio.Task[object]") -> bool:
        """Remove a call; return False when it was cancelled as overdue."""
        if self._due_at_s.pop(task, None) is not None:
            return True
        # Takes back the cancellation by this timer, not one of the function's own.
        asyncio.Task.uncancel(task)
        return False

    def _end_overdue(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._due_at_s:
            task, due_at_s = next(iter(self._due_at_s.items()))
            if due_at_s > now_s:
                context = contextvars.Context()
                self._timer = self._loop.call_at(due_at_s, self._end_overdue, context=context)
                return
            del self._due_at_s[task]
            if self._has_waited is not None and self._has_waited(task):
                # Last in the queue, because all others began before now.
                self._due_at_s[task] = now_s + self.limit_s
                continue
            task.cancel()
