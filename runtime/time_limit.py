"""The time limit that all calls of one function share."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from runtime.call_task import (
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
    """Ends those calls of one function that run longer than they may.

    As all of them have the same limit, the call that began first is due first: one timer, for the
    oldest, serves all. A timer per call, as `asyncio.timeout` makes it, cost 4 of the 15 µs that a
    message took whose function does nothing.

    Args:
        limit_s: how long a call may take.
        has_waited: whether a task's call waits, or did since this was asked last, for what other
            calls of the function have. Such a call has its time anew when it is over.

    Attributes:
        limit_s: how long a call may take.
        exceeded: how many took longer.
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
        """Wait for `call`, at most until `deadline_s` on the loop's clock.

        A task has one call at a time, and a later call no earlier deadline. Whatever the call
        raises, and if it cancels its own task, the task lives on.

        Raises:
            TimeLimitExceeded: it took longer, and was cancelled.
            EndedItself: it cancelled its own task, or raised what is no `Exception`.
            CancelledError: the host ends the task.
            Exception: what the call raised.
        """
        task: asyncio.Task[object] = asyncio.current_task()  # type: ignore[assignment]
        self._due_at_s[task] = deadline_s
        if self._timer is None:
            # The timer ends calls for the host, so its context must not be that of a call.
            context = contextvars.Context()
            self._timer = self._loop.call_at(deadline_s, self._end_overdue, context=context)
        try:
            result = await call
        except asyncio.CancelledError as raised:
            failure = await self._judge_cancel(task)
            if failure is None:
                raise  # Somebody else wants the task to end too, for good.
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

    async def _judge_cancel(self, task: "asyncio.Task[object]") -> Exception | None:
        """What a call failed of that ended with a cancellation; None when the host ended it."""
        is_in_time = self._forget(task)
        if is_cancelled_by_host(task):
            return None
        await take_back_own_cancels(task)
        if is_in_time:
            return EndedItself(CANCELLED_ITSELF)
        self.exceeded += 1
        return TimeLimitExceeded(f"the function ran longer than its limit of {self.limit_s:g} s")

    def _forget(self, task: "asyncio.Task[object]") -> bool:
        """Watch a call no longer; False when it was ended for being overdue."""
        if self._due_at_s.pop(task, None) is not None:
            return True
        # The request that is taken back is ours, not one of the function's own.
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
                # Behind all others, as they began before now.
                self._due_at_s[task] = now_s + self.limit_s
                continue
            task.cancel()
