"""Keeps the last log lines of the process, and copies lines to listeners at levels of their own.

Without a listener a line below the process's own level costs one comparison, and a line that is
written anyway is also encoded into a ring in memory. A listener's lines wait in a bounded queue
until they are taken; when it is full, lines are dropped, and counted.
"""

import json
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from runtime.observe.tracebacks import exc_info_from, plain_traceback

LEVELS: Final = logging.getLevelNamesMapping()
RING_LINES: Final = 1000
RING_BYTES: Final = 512 * 1024
QUEUE_LINES: Final = 1000
LONGEST_LINE: Final = 16 * 1024
_KEPT_OF_LARGE: Final = ("event", "level", "timestamp", "logger", "function", "error", "where")
_LONGEST_FIELD: Final = 1000
_MOST_NAMES: Final = 20

Line = tuple[int, bytes]
"""The number of the line in its process, from 1, and the entry as JSON."""


@dataclass(slots=True)
class LogFilter:
    """Which lines a listener gets.

    Attributes:
        level: the least level as a number.
        function: pattern of functions' names with `*` and `?`; None for all lines, also those of
            the host itself.
    """

    level: int
    function: str | None = None

    def takes(self, level: int, function: str) -> bool:
        """Whether a line passes."""
        if level < self.level:
            return False
        return self.function is None or (
            function != "" and (function == self.function or fnmatchcase(function, self.function))
        )


@dataclass(slots=True)
class Listener:
    """The lines that wait for one listener.

    Attributes:
        dropped: number of lines that found no room since the last `LogFeed.take`.
    """

    chosen: LogFilter
    lines: deque[Line] = field(default_factory=deque)
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    level: int
    function: str
    timestamp: str
    line: Line


class LogFeed:
    """The log lines of one process; every method may be called from any thread.

    Attributes:
        id: new in each process; with a line's number it identifies the line.
        least: the least level that somebody wants: the process itself, or a listener.
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(8)
        self.least = logging.INFO
        self._own = logging.INFO
        self._on_least: Callable[[int], None] | None = None
        self._ring: deque[_Kept] = deque()
        self._ring_bytes = 0
        self._number = 0
        self._listeners: dict[str, Listener] = {}
        # A finalizer may log while this thread records a line.
        self._lock = threading.RLock()

    def configure(self, own: int, on_least: Callable[[int], None]) -> None:
        """Set the process's own level, and a function that is called with each new `least`."""
        self._own, self._on_least = own, on_least
        self._set_least()

    def listen(self, key: str, chosen: LogFilter, *, last: int, since: str = "") -> list[Line]:
        """Add a listener, or change the filter of one; return lines from before for a new one.

        Args:
            key: identifies the listener.
            chosen: the lines that it gets.
            last: the most lines from before.
            since: of the lines from before also all of this time (ISO 8601, UTC) or later.
        """
        with self._lock:
            if (known := self._listeners.get(key)) is not None:
                known.chosen = chosen
                self._set_least()
                return []
            self._listeners[key] = Listener(chosen)
            self._set_least()
            return self._last(chosen, last, since)

    def forget(self, key: str) -> None:
        """Remove a listener, if it exists."""
        with self._lock:
            self._listeners.pop(key, None)
            self._set_least()

    def take(self, key: str, most: int) -> tuple[list[Line], int]:
        """Take at most `most` waiting lines, and the number of dropped ones since the last call."""
        with self._lock:
            listener = self._listeners.get(key)
            if listener is None:
                return [], 0
            taken = [listener.lines.popleft() for _ in range(min(most, len(listener.lines)))]
            dropped, listener.dropped = listener.dropped, 0
            return taken, dropped

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """A structlog processor: copy the entry, and pass it on if its level is the process's own.

        Raises:
            structlog.DropEvent: only a listener wanted the entry.
        """
        level = LEVELS.get(str(event.get("level", "info")).upper(), logging.INFO)
        is_own = level >= self._own
        if is_own or self._listeners:
            self._record(level, is_own=is_own, event=event)
        if not is_own:
            raise structlog.DropEvent
        return event

    def _record(self, level: int, *, is_own: bool, event: EventDict) -> None:
        function = str(event.get("function") or event.get("endpoint") or "")
        with self._lock:
            wanted = [
                each for each in self._listeners.values() if each.chosen.takes(level, function)
            ]
            room = [each for each in wanted if len(each.lines) < QUEUE_LINES]
            for listener in wanted:
                listener.dropped += len(listener.lines) >= QUEUE_LINES
            if not is_own and not room:
                return
            self._number += 1
            line = (self._number, encode(event))
            for listener in room:
                listener.lines.append(line)
            if is_own:
                self._keep(_Kept(level, function, str(event.get("timestamp", "")), line))

    def _keep(self, kept: _Kept) -> None:
        self._ring.append(kept)
        self._ring_bytes += len(kept.line[1])
        while len(self._ring) > RING_LINES or self._ring_bytes > RING_BYTES:
            self._ring_bytes -= len(self._ring.popleft().line[1])

    def _last(self, chosen: LogFilter, last: int, since: str) -> list[Line]:
        def newest_first() -> Iterator[Line]:
            number = 0
            for kept in reversed(self._ring):
                is_recent = bool(since) and kept.timestamp >= since
                if number >= last and not is_recent:
                    return
                if chosen.takes(kept.level, kept.function):
                    number += 1
                    yield kept.line

        return [*newest_first()][::-1]

    def _set_least(self) -> None:
        levels = [each.chosen.level for each in self._listeners.values()]
        least = min([self._own, *levels])
        if self._on_least is not None:
            self._on_least(least)
        self.least = least


def encode(event: EventDict) -> bytes:
    """The entry as JSON; a very large entry without its less important fields."""
    entry = dict(event)
    if (exc_info := exc_info_from(entry.pop("exc_info", None))) is not None:
        entry["exception"] = plain_traceback(exc_info)
    line = _dump(entry)
    if len(line) <= LONGEST_LINE:
        return line
    for name in ("exception", "stack"):
        if isinstance(stack := entry.get(name), str):
            # Its end names the error.
            entry[name] = f"…\n{stack[-LONGEST_LINE // 4 :]}"
    line = _dump(entry)
    if len(line) <= LONGEST_LINE:
        return line
    kept: EventDict = {
        name: str(entry[name])[:_LONGEST_FIELD] for name in _KEPT_OF_LARGE if name in entry
    }
    kept["left_out"] = sorted(map(str, entry.keys() - kept.keys()))[:_MOST_NAMES]
    return _dump(kept)


def _dump(entry: EventDict) -> bytes:
    # An integer beyond 64 bits or a lone surrogate must not lose the line.
    try:
        return orjson.dumps(entry)
    except TypeError:
        return json.dumps(entry, default=str).encode()


def leveled_logger(feed: LogFeed) -> type[structlog.typing.BindableLogger]:
    """A logger class whose least level is `feed.least` at the time of each call.

    Structlog's own class has its level built in, and a used logger keeps its class.
    """
    base = structlog.make_filtering_bound_logger(logging.DEBUG)

    class LeveledLogger(base):  # type: ignore[valid-type, misc]
        def is_enabled_for(self, level: int) -> bool:
            return level >= feed.least

        def get_effective_level(self) -> int:
            return feed.least

    for name in ("debug", "info", "warning", "warn", "msg"):
        _gate(LeveledLogger, name, feed)
    return LeveledLogger


def _gate(logger: type, name: str, feed: LogFeed) -> None:
    level = LEVELS.get(name.upper(), logging.INFO)
    write = getattr(logger, name)

    def gated(self: object, event: str | None = None, *args: object, **fields: object) -> object:
        return write(self, event, *args, **fields) if feed.least <= level else None

    gated.__name__ = name
    setattr(logger, name, gated)


FEED: Final = LogFeed()
"""The lines of this process: logs belong to the process."""

__all__ = ["FEED", "LEVELS", "Line", "LogFeed", "LogFilter", "leveled_logger"]
