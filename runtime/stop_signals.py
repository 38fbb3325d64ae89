"""SIGTERM and SIGINT, and what they interrupt."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class StopRequested(Exception):  # noqa: N818 - names what happened
    """A signal came while something was being waited for."""


class StopSignals:
    """SIGTERM and SIGINT: the first asks for a drain, the second for an end at once."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.at_once = asyncio.Event()

    def install(self) -> None:
        """Take the signals over for the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    def stop(self) -> None:
        """As a signal does."""
        if self.drain.is_set():
            self.at_once.set()
        self.drain.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which the first signal cancels.

        Raises:
            StopRequested: it was cancelled, and has cleaned up after itself.
        """
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self.drain.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            raise StopRequested
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)
