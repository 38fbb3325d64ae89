"""Calls a function module's `start`, `hand_over` and `stop` hooks, each within a time limit."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.call.function_version import Owner, running_owner
from runtime.context import WatchedContext
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.loader import Function
from runtime.loader.file_reads import START, recorded
from runtime.observe.logs import get_logger, running_function
from runtime.resource.outage import is_outage
from runtime.user_frames import where_of

log = get_logger("runtime.host")

STOP_LIMIT_S = 10.0
"""Time limit of a `stop` hook, which runs after the drain's grace period."""
CANCEL_LIMIT_S = 2.0
"""How long a cancelled hook may take to end; then the host goes on without it."""

SLOW_START_S = 5.0
"""After this time the log says that a `start` has not ended: its limit is a minute by default."""

Hook = Callable[..., Any]


class HookFailed(Exception):  # noqa: N818 - names what happened
    """A hook raised a `BaseException` that is not an `Exception`, or ran into its time limit."""


class StartFailed(ConfigError):  # noqa: N818 - names what happened
    """A module's `start` or `hand_over` failed for a reason of its own.

    Attributes:
        where: `file:line` of the project's own code that failed; empty when it is not known.
    """

    def __init__(self, problem: Problem, where: str = "") -> None:
        self.where = where
        super().__init__([problem])


class Hooks:
    """Calls the hooks of one version of a function, in tasks that carry the version's mark.

    Args:
        function: the version.
        context: the argument of `start` and `stop`.
        owner: the version's mark.
    """

    def __init__(self, function: Function, context: WatchedContext, owner: Owner) -> None:
        self._function = function
        self._context = context
        self._owner = owner

    async def start(self) -> Any:  # noqa: ANN401 - the hook's own
        """Call the module's `start` and return its result; None when it has none.

        Raises:
            ConfigError: the hook failed for a reason of its own, or took longer than its limit.
            Unavailable: a server that the hook needs does not answer.
        """
        if self._function.start is None:
            return None
        return await self._call_checked("start", self._function.start, self._context)

    async def hand_over(self, old_state: Any) -> Any:  # noqa: ANN401 - the hook's own
        """Call the module's `hand_over` with the state of the version before, in the same limit.

        Raises:
            ConfigError: as `start`.
            Unavailable: as `start`.
        """
        if self._function.hand_over is None:
            return None
        return await self._call_checked("hand_over", self._function.hand_over, old_state)

    async def stop(self) -> None:
        """Call the module's `stop`; a failure is only logged."""
        if self._function.stop is None:
            return
        try:
            await self._call_within(STOP_LIMIT_S, self._function.stop, self._context)
        except Exception:
            # Other functions' hooks must still run, and the connections must still be closed.
            log.exception("A function's stop failed", function=self._function.name)

    async def _call_checked(self, word: str, hook: Hook, argument: Any) -> Any:  # noqa: ANN401
        name = self._function.name
        slow = asyncio.get_running_loop().call_later(SLOW_START_S, self._tell_slow, word)
        try:
            # The data files that it reads count as sources of its module, for a reload.
            with recorded(START):
                return await self._call_within(self._function.spec.start_timeout, hook, argument)
        except (ConfigError, Unavailable):
            raise
        except Exception as failure:
            kind = type(failure).__name__
            if is_outage(failure):
                raise Unavailable(f"what function {name} needs to start", kind) from failure
            log.exception("A function cannot start", function=name)
            # The exception's text may contain a secret: it is only logged, and the log masks
            # secrets.
            wrong = f"its {word} failed: {kind}{_place_of(failure, hook)}; the log says more"
            remedy = "correct the module, or what it needs"
            if isinstance(failure, HookFailed):
                wrong, remedy = (
                    f"its {word} {failure}",
                    "correct the module, or raise start_timeout",
                )
            problem = Problem(f"function {name}", "", wrong, remedy)
            raise StartFailed(problem, where_of(failure)) from None
        finally:
            slow.cancel()

    def _tell_slow(self, word: str) -> None:
        log.warning(
            "A function has not started yet",
            function=self._function.name,
            waits_for=word,
            limit_s=self._function.spec.start_timeout,
        )

    async def _call_within(self, limit_s: float, hook: Hook, argument: Any) -> Any:  # noqa: ANN401
        """Call a hook in a task of its own, so that a hook that ignores a cancellation can be left.

        Raises:
            HookFailed: the hook did not end in time, or raised a `BaseException` that is not an
                `Exception`.
            Exception: the exception that the hook raised.
        """
        name = self._function.name
        call = asyncio.create_task(self._call(hook, argument), name=f"hook {name}")
        try:
            await asyncio.wait({call}, timeout=limit_s)
            if not call.done():
                raise HookFailed(f"took longer than {limit_s:g} s")
            if call.cancelled():
                raise HookFailed("was cancelled from within")
            return call.result()
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait({call}, timeout=CANCEL_LIMIT_S)
            if not call.done():
                log.warning("A hook goes on although it was cancelled", function=name)
            elif not call.cancelled():
                call.exception()  # Read, or asyncio logs that it was never retrieved.

    async def _call(self, hook: Hook, argument: Any) -> Any:  # noqa: ANN401 - the hook's own
        running_owner.set(self._owner)
        running_function.set(self._function.name)
        context = self._context
        try:
            result = hook(argument)
            if inspect.isawaitable(result):
                result = await result
            if context.effects is not None:
                # Tasks that a `start` created may run on.
                await context.effects.check(begun_too=False)
        except (Exception, asyncio.CancelledError):
            if context.effects is not None:
                await context.effects.close()
            raise
        except BaseException as raised:
            # A KeyboardInterrupt or SystemExit that left the task would end the loop here.
            raise HookFailed(f"raised {type(raised).__name__}") from raised
        return result


def _place_of(failure: BaseException, hook: Hook) -> str:
    """` at file:line` of the innermost frame in the hook's own file, or else in any file."""
    own = getattr(inspect.unwrap(hook), "__code__", None)
    found, trace = "", failure.__traceback__
    in_own_file = False
    while trace is not None:
        code = trace.tb_frame.f_code
        is_own = own is not None and code.co_filename == own.co_filename
        if is_own or not in_own_file:
            found = f" at {Path(code.co_filename).name}:{trace.tb_lineno}"
            in_own_file = in_own_file or is_own
        trace = trace.tb_next
    return found
