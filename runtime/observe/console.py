"""Renders log entries as text: on a terminal in its width, with breaks between words."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TextIO

from rich.cells import cell_len, chop_cells
from structlog.typing import EventDict, WrappedLogger

from runtime.observe.tracebacks import draw_traceback, exc_info_from, plain_traceback

DEFAULT_WIDTH = 80
LEAST_ROOM = 20
"""With less width than this beside the indentation, the terminal wraps the lines."""

_HOST = "runtime"
_LEVELS: Final[Mapping[str, tuple[str, str]]] = {
    "debug": ("DEBUG", "2"),
    "info": ("INFO", "32"),
    "warning": ("WARN", "33"),
    "error": ("ERROR", "1;31"),
    "critical": ("ERROR", "1;31"),
}
_DIM, _TIME = "2", "2"
_LEVEL_WIDTH = 5
_STACKS = ("stack", "exception", "excerpt")
_APART = re.compile(r"[^/.,;:=&?_-]*[/.,;:=&?_-]*")
"""Characters after which a word that is longer than a line may be broken."""


def printable(text: str, *, keep: str = "") -> str:
    """The text with every control character escaped.

    Subjects, reasons and payloads come from devices: an escape sequence in them must not reach the
    reader's terminal.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def terminal_width(stream: TextIO) -> int:
    """The columns of the terminal behind `stream`, or a default."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH
    except (OSError, ValueError):
        return DEFAULT_WIDTH


def obeys_escapes(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colors(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user wants colours. Source: no-color.org."""
    return obeys_escapes(stream) and not os.environ.get("NO_COLOR")


@dataclass(frozen=True, slots=True)
class _Word:
    """A word between two blanks. `key` is its beginning, which is dimmed."""

    text: str
    key: str = ""
    gap: int = 1


class ConsoleRenderer:
    """A structlog processor that renders time, level, sentence and fields.

    On a terminal the time is local, to the second, and a line that is too long continues below its
    sentence. Elsewhere each entry is one line, with the time as it was logged.

    Args:
        stream: returns the stream that the lines are for; it may be replaced while the process
            runs.
    """

    def __init__(self, stream: Callable[[], TextIO] = lambda: sys.stderr) -> None:
        self._stream = stream

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        """The lines of one entry."""
        stream = self._stream()
        width = terminal_width(stream) if stream.isatty() else None
        colors = has_colors(stream)
        exc_info = exc_info_from(event.pop("exc_info", None))
        stacks = [str(stack) for field in _STACKS if (stack := event.pop(field, None))]
        level, color = _LEVELS.get(event.pop("level", "info"), _LEVELS["info"])
        time = str(event.pop("timestamp", ""))
        if width is not None and time:
            time = datetime.fromisoformat(time).astimezone().strftime("%H:%M:%S")
        indent = len(time) + 1 + _LEVEL_WIDTH + 1
        room = None if width is None else width - indent
        lines = _wrap(_words(event), None if room is None or room < LEAST_ROOM else room)
        head = f"{_paint(time, _TIME, colors)} {_paint(level.ljust(_LEVEL_WIDTH), color, colors)} "
        drawn = f"\n{' ' * indent}".join(_draw(line, colors=colors) for line in lines)
        shown = [printable(stack, keep="\n\t") for stack in stacks]
        if exc_info is not None and width is not None:
            shown.append(draw_traceback(exc_info, width=width, colors=colors))
        elif exc_info is not None:
            shown.append(printable(plain_traceback(exc_info), keep="\n\t"))
        return "\n".join([head + drawn, *shown])


def is_of_the_host(event: EventDict) -> bool:
    """Whether the host itself logged the entry, not a function or a library."""
    return str(event.get("logger", "")).partition(".")[0] == _HOST


def join_words(event: EventDict) -> str:
    """Sentence and fields of an entry on one line, without time and level."""
    kept = {name: value for name, value in event.items() if name not in {"level", "timestamp"}}
    return _draw(list(_words(kept)), colors=False)


def _words(event: EventDict) -> Iterator[_Word]:
    """The function's name, the words of the sentence, and the words of the fields."""
    is_own = is_of_the_host(event)
    logger = str(event.pop("logger", ""))
    if function := str(event.pop("function", "")):
        yield _Word("", key=f"{printable(function)}:")
    for word in str(event.pop("event", "")).split():
        yield _Word(printable(word))
    # The names of the host's own loggers are of use only to its developers.
    if logger and not is_own and logger != function:
        event["logger"] = logger
    for name, value in event.items():
        first, *more = _show(value).split(" ")
        yield _Word(first, key=f"{printable(name)}=", gap=2)
        for word in more:
            yield _Word(word)


def _show(value: object) -> str:
    text = printable(str(value))
    return f'"{text}"' if isinstance(value, str) and (" " in text or not text) else text


def _wrap(words: Iterator[_Word], room: int | None) -> list[list[_Word]]:
    lines: list[list[_Word]] = [[]]
    used = 0
    for word in words:
        length = cell_len(word.key) + cell_len(word.text)
        gap = word.gap if lines[-1] else 0
        if room is None or used + gap + length <= room:
            lines[-1].append(word)
            used += gap + length
            continue
        for part in _break(word, room):
            if lines[-1]:
                lines.append([])
            lines[-1].append(part)
            used = cell_len(part.key) + cell_len(part.text)
    return lines


def _break(word: _Word, room: int) -> Iterator[_Word]:
    """The word itself, or the parts of a word that is longer than a line."""
    key, text, left = word.key, "", room - cell_len(word.key)
    if left < 1:
        yield _Word(word.key)
        key, left = "", room
    shortest = left
    for piece in _APART.findall(word.text):
        for part in chop_cells(piece, shortest) if cell_len(piece) > shortest else [piece]:
            if text and cell_len(text) + cell_len(part) > left:
                yield _Word(text, key)
                key, text, left = "", "", room
            text += part
    yield _Word(text, key)


def _draw(line: list[_Word], *, colors: bool) -> str:
    drawn = ""
    for word in line:
        drawn += " " * (word.gap if drawn else 0) + _paint(word.key, _DIM, colors) + word.text
    return drawn


def _paint(text: str, code: str, colors: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colors and text else text
