"""Calls of a function module's `start` and `stop` hooks."""

import inspect
from collections.abc import Callable
from typing import Any

from runtime.context import Context
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.observe.logs import get_logger
from runtime.resource.outage import is_outage

log = get_logger("runtime.host")

START_ERROR_CHARACTERS = 300

Hook = Callable[..., Any]


async def call_start(name: str, hook: Hook, context: Context) -> Any:  # noqa: ANN401 - the hook's own
    """What a module's `start` returns.

    Raises:
        ConfigError: it failed for a reason of its own.
        Unavailable: a server that it needs does not answer.
    """
    try:
        return await _call(hook, context)
    except (ConfigError, Unavailable):
        raise
    except Exception as failure:
        kind = type(failure).__name__
        if is_outage(failure):
            raise Unavailable(f"what function {name} needs to start", kind) from failure
        log.exception("A function cannot start", function=name)
        wrong = f"its start failed: {kind}: {str(failure)[:START_ERROR_CHARACTERS]}"
        remedy = "correct the module, or what it needs"
        raise ConfigError([Problem(f"function {name}", "", wrong, remedy)]) from failure


async def call_stop(name: str, hook: Hook, context: Context) -> None:
    """Call a module's `stop`, whose failure is logged and goes no further."""
    try:
        await _call(hook, context)
    except Exception:
        # The other functions' hooks, and the connections, are to be ended all the same.
        log.exception("A function's stop failed", function=name)


async def _call(hook: Hook, context: Context) -> Any:  # noqa: ANN401 - the hook's own
    result = hook(context)
    return await result if inspect.isawaitable(result) else result
