"""Calls a function module's `start` and `stop` hooks, each within a time limit."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.context import WatchedContext
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.loader.file_reads import START, recorded
from runtime.observe.logs import get_logger
from runtime.resource.outage import is_outage

log = get_logger("runtime.host")

STOP_LIMIT_S = 10.0
"""Time limit of a `stop` hook, which runs after the drain's grace period."""
CANCEL_LIMIT_S = 2.0
"""How long a cancelled hook may take to end; then the host goes on without it."""

Hook = Callable[..., Any]


class HookFailed(Exception):  # noqa: N818 - names what happened
    """A hook raised a `BaseException` that is not an `Exception`, or ran into its time limit."""


async def call_start(name: str, hook: Hook, context: WatchedContext, limit_s: float) -> Any:  # noqa: ANN401 - the hook's own
    """Call a module's `start` and return its result.

    Raises:
        ConfigError: the hook failed for a reason of its own, or took longer than `limit_s`.
        Unavailable: a server that the hook needs does not answer.
    """
    try:
        # The data files that it reads count as sources of its module, for a reload.
        with recorded(START):
            return await _call_within(limit_s, hook, context)
    except (ConfigError, Unavailable):
        raise
    except Exception as failure:
        kind = type(failure).__name__
        if is_outage(failure):
            raise Unavailable(f"what function {name} needs to start", kind) from failure
        log.exception("A function cannot start", function=name)
        # The exception's text may contain a secret: it is only logged, and the log masks secrets.
        wrong = f"its start failed: {kind}{_place_of(failure, hook)}; the log says more"
        remedy = "correct the module, or what it needs"
        if isinstance(failure, HookFailed):
            wrong, remedy = f"its start {failure}", "correct the module, or raise start_timeout"
        raise ConfigError([Problem(f"function {name}", "", wrong, remedy)]) from None


async def call_stop(name: str, hook: Hook, context: WatchedContext) -> None:
    """Call a module's `stop`; a failure is only logged."""
    try:
        await _call_within(STOP_LIMIT_S, hook, context)
    except Exception:
        # The other functions' hooks must still run, and the connections must still be closed.
        log.exception("A function's stop failed", function=name)


async def _call_within(limit_s: float, hook: Hook, context: WatchedContext) -> Any:  # noqa: ANN401
    """Call a hook in a task of its own, so that a hook that ignores its cancellation can be left.

    Raises:
        HookFailed: the hook did not end in time, or raised a `BaseException` that is not an
            `Exception`.
        Exception: the exception that the hook raised.
    """
    call = asyncio.create_task(_call(hook, context), name=f"hook {context.function}")
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
            log.warning("A hook goes on although it was cancelled", function=context.function)
        elif not call.cancelled():
            call.exception()  # Read, or asyncio logs that it was never retrieved.


async def _call(hook: Hook, context: WatchedContext) -> Any:  # noqa: ANN401 - the hook's own
    try:
        result = hook(context)
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
