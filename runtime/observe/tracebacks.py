"""Renders tracebacks for a terminal with rich, without the host's frames and without values."""

import io
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.traceback import Frame, Stack, Traceback

import runtime
from runtime.observe.redaction import scrub
from runtime.safe_text import REASON_CHARACTERS, text_of

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_HOST = str(Path(runtime.__file__).parent) + os.sep
_LINES_AROUND = 2
_WIDEST = 120
_MOST_CHARACTERS = 32_768


def exc_info_from(given: object) -> ExcInfo | None:
    """Normalise a logger's `exc_info`: an exception, `sys.exc_info()`, or True."""
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    found = given if isinstance(given, tuple) else sys.exc_info() if given else (None, None, None)
    kind, failure, trace = found
    return (kind, failure, trace) if kind is not None and failure is not None else None


def plain_traceback(exc_info: ExcInfo) -> str:
    """Python's own traceback, without secrets."""
    whole = "".join(traceback.format_exception(*exc_info)).rstrip("\n")
    return scrub(whole[:_MOST_CHARACTERS])


def draw_traceback(exc_info: ExcInfo, *, width: int, colors: bool) -> str:
    """The traceback of an exception and of its causes, at most `width` columns wide.

    Local variables are not shown: they hold payloads and secrets.
    """
    extracted = Traceback.extract(*exc_info, show_locals=False)
    has_own = any(_own_frames(stack) for stack in extracted.stacks)
    for stack in extracted.stacks:
        _prepare(stack, keeps_host=not has_own)
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=colors,
        color_system="standard" if colors else None,
        width=min(width, _WIDEST),
        legacy_windows=False,
    )
    console.print(Traceback(extracted, width=None, extra_lines=_LINES_AROUND))
    return buffer.getvalue().rstrip("\n")


def _prepare(stack: Stack, *, keeps_host: bool) -> None:
    """Mask secrets, and remove the host's frames unless the host itself failed."""
    stack.exc_value = text_of(scrub(stack.exc_value[: 2 * REASON_CHARACTERS]))
    stack.notes[:] = [scrub(note) for note in stack.notes]
    if not keeps_host:
        stack.frames[:] = _own_frames(stack)
    for member in stack.exceptions:
        for inner in member.stacks:
            _prepare(inner, keeps_host=keeps_host)


def _own_frames(stack: Stack) -> list[Frame]:
    return [frame for frame in stack.frames if not frame.filename.startswith(_HOST)]
