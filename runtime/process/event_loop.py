"""Runs the host's event loop so that no function can end it."""

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
    """Run `main` to its end on a new event loop.

    In asyncio a `KeyboardInterrupt` or `SystemExit` of any task ends the loop, so a task that a
    function created could end the host. Here the loop goes on, and the code that awaits the task
    gets the exception.
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
    """Whether it may come from Ctrl-C, before the host has installed its own signal handler."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(raised, KeyboardInterrupt) and is_default
