"""Handlers of SIGTERM, SIGINT and SIGHUP, which drain, stop or reload the host."""

import asyncio
import signal
import sys
import termios
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from runtime.observe.logs import get_logger

log = get_logger("runtime")

T = TypeVar("T")


class StopRequested(Exception):  # noqa: N818 - names what happened
    """A signal arrived during a wait that it interrupts."""


def _terminals() -> list[int]:
    """The descriptors that are a terminal."""
    streams = [stream for stream in (sys.stdin, sys.stderr) if stream is not None]
    return [stream.fileno() for stream in streams if stream.isatty()]


class StopSignals:
    """Signal handlers: the first SIGTERM or SIGINT starts a drain, the second stops at once.

    SIGHUP starts a drain too when it comes because the host's terminal was closed, and else a
    reload. When SIGHUP was ignored at the start, as by `nohup`, it stays ignored.

    Args:
        has_terminal: whether the host is on a terminal; detected unless given.
    """

    def __init__(self, *, has_terminal: bool | None = None) -> None:
        self.drain = asyncio.Event()
        self.at_once = asyncio.Event()
        # Detected now: after the terminal is closed it could not be detected any more.
        self._terminals = [] if has_terminal is False else _terminals()
        self._has_terminal = bool(self._terminals) if has_terminal is None else has_terminal
        self._reload: Callable[[], None] | None = None
        self._is_reload_due = False

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

    def on_reload(self, reload: Callable[[], None]) -> None:
        """Call `reload` at each SIGHUP that asks for one; at once if one came before."""
        self._reload = reload
        if self._is_reload_due:
            self._is_reload_due = False
            reload()

    def _hang_up(self) -> None:
        if self._has_terminal and not self._is_terminal_open():
            self.drain.set()
        elif self.drain.is_set():
            log.warning("Not reloaded: the host drains")
        elif self._reload is not None:
            self._reload()
        else:
            self._is_reload_due = True  # The files may have been read already.

    def _is_terminal_open(self) -> bool:
        # The kernel closes a terminal before it sends the signal (Linux, `__tty_hangup`).
        for descriptor in self._terminals:
            try:
                termios.tcgetattr(descriptor)
            except (termios.error, OSError):
                return False
        return bool(self._terminals)

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
