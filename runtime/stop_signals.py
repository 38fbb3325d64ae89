"""Handlers of SIGTERM, SIGINT and SIGHUP, which drain or stop the host."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from runtime.observe.logs import get_logger

log = get_logger("runtime")

T = TypeVar("T")


class StopRequested(Exception):  # noqa: N818 - names what happened
    """A signal arrived during a wait that it interrupts."""


def _has_terminal() -> bool:
    return any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


class StopSignals:
    """Signal handlers: the first SIGTERM or SIGINT starts a drain, the second stops at once.

    On a terminal SIGHUP means that the terminal is closed, and starts a drain too. For any other
    host, such as a daemon, SIGHUP would mean a reload, which a host does not do: there the signal
    is logged and ignored. When SIGHUP was ignored at the start, as by `nohup`, it stays ignored.

    Args:
        has_terminal: whether the host is on a terminal; detected unless given.
    """

    def __init__(self, *, has_terminal: bool | None = None) -> None:
        self.drain = asyncio.Event()
        self.at_once = asyncio.Event()
        # Detected now: after the terminal is closed it could not be detected any more.
        self._has_terminal = _has_terminal() if has_terminal is None else has_terminal

    def install(self) -> None:
        """Install the handlers on the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def stop(self) -> None:
        """Do what SIGTERM does."""
        if self.drain.is_set():
            self.at_once.set()
        self.drain.set()

    def _hang_up(self) -> None:
        if self._has_terminal:
            self.drain.set()
        else:
            log.info("SIGHUP is ignored; restart the host to have it read its manifests again")

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which the first signal cancels, and return its result.

        Raises:
            StopRequested: a signal cancelled `work`, and `work` has ended.
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
