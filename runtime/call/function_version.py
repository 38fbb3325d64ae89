"""One version of a function as the dispatcher calls it, and the background tasks of its code."""

import asyncio
import contextvars
import gc
from typing import Any

from runtime.call.call_task import CallTask
from runtime.call.time_limit import TimeLimit
from runtime.context import Scope
from runtime.loader import Function
from runtime.observe.logs import get_logger
from runtime.user_frames import is_own_code

log = get_logger("runtime.reload")

CANCEL_LIMIT_S = 2.0
"""How long a cancelled background task may take to end; then the host goes on without it."""


class Owner:
    """Marks the tasks that the code of one version creates; it refers to nothing of the version.

    The mark stays in the context of a worker's task until its next call, so it must not keep a
    version alive.
    """

    __slots__ = ("__weakref__",)


running_owner: contextvars.ContextVar[Owner | None] = contextvars.ContextVar(
    "runtime_owner", default=None
)
"""The version whose code runs in this context."""


class FunctionVersion:
    """A function with its scope, its time limit and the number of its running calls.

    Args:
        function: the function.
        scope: what all its calls share; versions that differ only in the manifest may share one.
        owner: marks the tasks of its code; versions with one scope share one.

    Attributes:
        limit: the time limit of its calls.
        max_attempts: the most attempts of a message.
        calls: number of running calls.
        is_retired: whether another version has replaced it.
        ended: set when it is retired and its last call has ended.
    """

    __slots__ = (
        "calls",
        "ended",
        "function",
        "is_retired",
        "limit",
        "max_attempts",
        "owner",
        "scope",
    )

    def __init__(self, function: Function, scope: Scope, owner: Owner | None = None) -> None:
        self.function = function
        self.scope = scope
        self.owner = owner or Owner()
        self.limit = TimeLimit(function.spec.timeout, scope.has_waited)
        self.max_attempts = function.spec.retry.max_attempts
        self.calls = 0
        self.is_retired = False
        self.ended = asyncio.Event()

    def retire(self) -> None:
        """Mark the version as replaced: it gets no more calls."""
        self.is_retired = True
        if not self.calls:
            self.end()

    def end(self) -> None:
        """Note that the last call of a retired version has ended."""
        self.limit.stop()
        self.ended.set()


async def cancel_tasks_of(owner: Owner, function: str) -> None:
    """Cancel the background tasks that a version's code has started and not ended.

    Only tasks that run the project's own code: a library's tasks belong to an object, such as a
    client, that the module's `stop` closes or that the version hands over.
    """
    left = {task for task in asyncio.all_tasks() if _is_owned(task, owner)}
    if not left:
        return
    log.debug(
        "Background tasks of an old version are cancelled", function=function, tasks=len(left)
    )
    for task in left:
        task.cancel()
    ended, stuck = await asyncio.wait(left, timeout=CANCEL_LIMIT_S)
    for task in ended:
        if not task.cancelled():
            task.exception()  # Read, or asyncio logs that it was never retrieved.
    if stuck:
        sentence = "Background tasks of an old version go on although they were cancelled"
        log.warning(sentence, function=function, tasks=len(stuck))


def _is_owned(task: "asyncio.Task[Any]", owner: Owner) -> bool:
    if isinstance(task, CallTask) or task is asyncio.current_task():
        return False  # A task of the host, which calls functions.
    code = getattr(task.get_coro(), "cr_code", None)
    if code is None or not is_own_code(code.co_filename):
        return False
    return _context_of(task).get(running_owner) is owner


def _context_of(task: "asyncio.Task[Any]") -> contextvars.Context:
    get_context = getattr(task, "get_context", None)
    if get_context is not None:  # Python 3.12 and up
        context: contextvars.Context = get_context()
        return context
    # A task of Python 3.11 visits its own context before those of its callbacks.
    found = (each for each in gc.get_referents(task) if isinstance(each, contextvars.Context))
    return next(found, contextvars.Context())


__all__ = ["FunctionVersion", "Owner", "cancel_tasks_of", "running_owner"]
