"""Counts the calls of a function under test, and records what it sends."""

import functools
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from runtime.context import Context
from runtime.loader import Function
from runtime.local.recorded_effects import RecordedEffects, Sent
from runtime.observe.logs import redact


def counted(function: Function, running: Counter[str]) -> Callable[..., Any]:
    """The handler, with its running calls counted in `running`."""
    handler, name = function.handler, function.name

    @contextmanager
    def counting() -> Iterator[None]:
        running[name] += 1
        try:
            yield
        finally:
            running[name] -= 1

    if function.is_async:

        @functools.wraps(handler)
        async def call(*arguments: Any) -> Any:  # noqa: ANN401 - the function's own
            with counting():
                return await handler(*arguments)
    else:

        @functools.wraps(handler)
        def call(*arguments: Any) -> Any:  # noqa: ANN401 - the function's own
            with counting():
                return handler(*arguments)

    return call


def recorded_start(function: Function, sent: list[Sent]) -> Callable[..., Any]:
    """A `start` that first has the effects of all calls recorded."""

    async def start(ctx: Context[Any]) -> Any:  # noqa: ANN401 - the function's own
        scope = ctx._scope  # noqa: SLF001 - what calls send is recorded nowhere else
        scope.broker = RecordedEffects(live=scope.broker, sent=sent, function=function.name)
        if function.start is None:
            return None
        state = function.start(ctx)
        return await state if inspect.isawaitable(state) else state

    return start


def configure_logs() -> None:
    """Log as a host does, with plain tracebacks: structlog's own default takes 0.3 s for each."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            redact,
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
