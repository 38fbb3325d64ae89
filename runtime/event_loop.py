"""Runs the host's event loop, which no function can end."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from runtime.observe.logs import get_logger
from runtime.safe_text import name_of

T = TypeVar("T")

log = get_logger("runtime")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on an event loop of its own.

    asyncio lets `KeyboardInterrupt` and `SystemExit` out of any task and ends the loop, so that a
    task which a function made would end the host. Here the loop goes on, and whoever awaits that
    task gets the exception.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        while True:
            try:
                return loop.run_until_complete(task)
            except (KeyboardInterrupt, SystemExit) as raised:
                if task.done() or _may_come_from_a_signal(raised):
                    raise
                sentence = "A task raised what would have ended the host"
                log.exception(sentence, error_type=name_of(raised))


def _may_come_from_a_signal(raised: BaseException) -> bool:
    """Whether it may be a person's Ctrl-C: before the host has a handler of its own for it."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(raised, KeyboardInterrupt) and is_default
