"""Limits log lines of one kind within a time window, and counts the others."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass

LINES = 5
WINDOW_S = 10.0
MOST_KINDS = 256
"""The most kinds that are distinguished at one time; all further kinds count as one."""


@dataclass(slots=True)
class _Window:
    ends_s: float
    admitted: int = 0
    held_back: int = 0
    timer: asyncio.TimerHandle | None = None


class FloodGate:
    """Admits the first `LINES` of a kind within `WINDOW_S`.

    Args:
        summarize: called at a window's end, with the kind and the number of lines held back.
    """

    def __init__(self, summarize: Callable[[Hashable, int], None]) -> None:
        self._summarize = summarize
        self._windows: dict[Hashable, _Window] = {}
        self._loop = asyncio.get_running_loop()

    def admits(self, kind: Hashable) -> bool:
        """Whether another line of this kind may be written; counts it if not."""
        now_s = self._loop.time()
        window = self._windows.get(kind)
        if window is None or window.ends_s <= now_s:
            if window is not None:
                self._end(kind)
            elif len(self._windows) >= MOST_KINDS:
                self._forget_old(now_s)
                kind = kind if len(self._windows) < MOST_KINDS else ""
            window = self._windows.setdefault(kind, _Window(now_s + WINDOW_S))
        if window.admitted < LINES:
            window.admitted += 1
            return True
        window.held_back += 1
        if window.timer is None:
            window.timer = self._loop.call_at(window.ends_s, self._end, kind)
        return False

    def flush(self) -> None:
        """Log the number of lines held back so far."""
        for kind in list(self._windows):
            self._end(kind)

    def _end(self, kind: Hashable) -> None:
        window = self._windows.pop(kind, None)
        if window is None:
            return
        if window.timer is not None:
            window.timer.cancel()
        if window.held_back:
            self._summarize(kind, window.held_back)

    def _forget_old(self, now_s: float) -> None:
        for kind in [kind for kind, window in self._windows.items() if window.ends_s <= now_s]:
            self._end(kind)
