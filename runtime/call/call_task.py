"""Task in which functions are called: what a function raises ends only its own call."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from runtime.safe_text import describe, name_of

T = TypeVar("T")

CANCELLED_ITSELF = "the function cancelled its own task (CancelledError)"

_calling: contextvars.ContextVar["CallTask[Any] | None"] = contextvars.ContextVar(
    "runtime_calling", default=None
)


class EndedItself(Exception):  # noqa: N818 - names what happened
    """The function raised something that would have ended the host or its worker."""


class CallTask(asyncio.Task[T]):
    """A task that tells a cancellation by the host from one by the function that it calls.

    A cancellation is the function's own when the code that requested it runs in the context of this
    task: the function itself, or a task or timer of the function. The host cancels from another
    context.

    Attributes:
        own_cancels: number of the function's own cancellations that were not taken back.
    """

    __slots__ = ("own_cancels",)

    own_cancels: int

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ANN401 - as the base class has it
        """Request cancellation of the task."""
        if _calling.get() is self:
            self.own_cancels += 1
        return super().cancel(msg)

    def uncancel(self) -> int:
        """Take one cancellation back, the function's own first; return how many are left."""
        if self.own_cancels:
            self.own_cancels -= 1
        return super().uncancel()

    def cancel_again(self) -> None:
        """Repeat a cancellation by the host that the function has swallowed."""
        super().cancel()


def create_call_task(work: Coroutine[Any, Any, T], *, name: str | None = None) -> CallTask[T]:
    """Run `work`, which calls functions, in a new `CallTask`."""
    context = contextvars.copy_context()
    task = CallTask(work, loop=asyncio.get_running_loop(), name=name, context=context)
    task.own_cancels = 0
    context.run(_calling.set, task)
    return task


def current_call() -> "asyncio.Task[Any] | None":
    """The task of the current call, also inside a task that the function has created."""
    return _calling.get() or asyncio.current_task()


def failure_of(raised: BaseException, task: "asyncio.Task[Any] | None") -> Exception:
    """Convert what a function raised to a failure of the function. Call it in the `except` block.

    Args:
        raised: the caught exception.
        task: the task in which the function was called; None for a thread.

    Raises:
        BaseException: `raised`, when the host ends the call.
    """
    if isinstance(raised, Exception):
        return raised
    if isinstance(raised, asyncio.CancelledError) and is_cancelled_by_host(task):
        raise raised
    trace = raised.__traceback__
    if isinstance(raised, GeneratorExit) and (trace is None or trace.tb_next is None):
        raise raised  # The function did not raise it: the coroutine is being closed.
    failure = EndedItself(_told(raised))
    failure.__cause__ = raised
    return failure


def _told(raised: BaseException) -> str:
    if isinstance(raised, asyncio.CancelledError):
        return CANCELLED_ITSELF
    name, text = name_of(raised), describe(raised)
    return f"the function raised {name}" + (f": {text}" if text != name else "")


def is_cancelled_by_host(task: "asyncio.Task[Any] | None") -> bool:
    """Whether the host, and not only the function, has cancelled the task."""
    if task is None:
        return False
    own = task.own_cancels if isinstance(task, CallTask) else 0
    return task.cancelling() > own


async def take_back_own_cancels(task: "asyncio.Task[Any]") -> bool:
    """Take the function's own cancellations of the task back, so that the task goes on.

    A cancellation by the host that the function has swallowed is repeated.

    Returns:
        Whether one of the function's own cancellations was not delivered yet.
    """
    was_pending = False
    if isinstance(task, CallTask) and task.own_cancels:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            was_pending = True
        while task.own_cancels:
            task.uncancel()
    if task.cancelling():
        if isinstance(task, CallTask):
            task.cancel_again()
        else:
            task.cancel()
    return was_pending
