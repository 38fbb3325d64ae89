"""SIGTERM, SIGINT and SIGHUP, and what they interrupt."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from runtime.observe.logs import get_logger

log = get_logger("runtime")

T = TypeVar("T")


class StopRequested(Exception):  # noqa: N818 - names what happened
    """A signal came while something was being waited for."""


def _has_terminal() -> bool:
    return any(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


class StopSignals:
    """SIGTERM and SIGINT: the first asks for a drain, the second for an end at once.

    SIGHUP says to a host on a terminal that the terminal is gone, and asks for a drain too. To any
    other host, a daemon for example, it would say to reload, which a host does not do: there the
    signal is logged and ignored. Where it was ignored before, as `nohup` does, it stays so.

    Args:
        has_terminal: whether it is on a terminal; found out unless given.
    """

    def __init__(self, *, has_terminal: bool | None = None) -> None:
        self.drain = asyncio.Event()
        self.at_once = asyncio.Event()
        # Asked now: of a terminal that is gone, it cannot be told any more.
        self._has_terminal = _has_terminal() if has_terminal is None else has_terminal

    def install(self) -> None:
        """Take the signals over for the running loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)

    def stop(self) -> None:
        """As a signal does."""
        if self.drain.is_set():
            self.at_once.set()
        self.drain.set()

    def _hang_up(self) -> None:
        if self._has_terminal:
            self.drain.set()
        else:
            log.info("SIGHUP is ignored; restart the host to have it read its manifests again")

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
