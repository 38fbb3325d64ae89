"""Calls of a function module's `start` and `stop` hooks, each within a time limit."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.context import WatchedContext
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.observe.logs import get_logger
from runtime.resource.outage import is_outage

log = get_logger("runtime.host")

STOP_LIMIT_S = 10.0
"""How long a `stop` may take: it runs after the drain's grace."""
CANCEL_LIMIT_S = 2.0
"""How long a hook that was cancelled may take to end before nobody waits for it any more."""

Hook = Callable[..., Any]


class HookFailed(Exception):  # noqa: N818 - names what happened
    """A hook raised what is no `Exception`, or ran into its time limit."""


async def call_start(name: str, hook: Hook, context: WatchedContext, limit_s: float) -> Any:  # noqa: ANN401 - the hook's own
    """What a module's `start` returns.

    Raises:
        ConfigError: it failed for a reason of its own, or took longer than `limit_s`.
        Unavailable: a server that it needs does not answer.
    """
    try:
        return await _call_within(limit_s, hook, context)
    except (ConfigError, Unavailable):
        raise
    except Exception as failure:
        kind = type(failure).__name__
        if is_outage(failure):
            raise Unavailable(f"what function {name} needs to start", kind) from failure
        log.exception("A function cannot start", function=name)
        # The exception's text may hold a secret: it stands in the log alone, which masks those.
        wrong = f"its start failed: {kind}{_place_of(failure, hook)}; the log says more"
        remedy = "correct the module, or what it needs"
        if isinstance(failure, HookFailed):
            wrong, remedy = f"its start {failure}", "correct the module, or raise start_timeout"
        raise ConfigError([Problem(f"function {name}", "", wrong, remedy)]) from None


async def call_stop(name: str, hook: Hook, context: WatchedContext) -> None:
    """Call a module's `stop`, whose failure is logged and goes no further."""
    try:
        await _call_within(STOP_LIMIT_S, hook, context)
    except Exception:
        # The other functions' hooks, and the connections, are to be ended all the same.
        log.exception("A function's stop failed", function=name)


async def _call_within(limit_s: float, hook: Hook, context: WatchedContext) -> Any:  # noqa: ANN401
    """Call a hook in a task of its own, so that one that ignores its cancellation can be left.

    Raises:
        HookFailed: it did not end in time, or raised what is no `Exception`.
        Exception: what the hook raised.
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
            call.exception()  # Read, or asyncio says that nobody retrieved it.


async def _call(hook: Hook, context: WatchedContext) -> Any:  # noqa: ANN401 - the hook's own
    try:
        result = hook(context)
        if inspect.isawaitable(result):
            result = await result
        if context.effects is not None:
            # Tasks that a `start` made may run on.
            await context.effects.check(begun_too=False)
    except (Exception, asyncio.CancelledError):
        if context.effects is not None:
            await context.effects.close()
        raise
    except BaseException as raised:
        # Let through, a KeyboardInterrupt or SystemExit would end the loop at this very place.
        raise HookFailed(f"raised {type(raised).__name__}") from raised
    return result


def _place_of(failure: BaseException, hook: Hook) -> str:
    """` at file:line` of the innermost frame in the hook's own file, or else of all."""
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
