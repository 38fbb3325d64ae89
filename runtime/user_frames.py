"""Finds a function's own lines in a traceback, without the host's frames."""

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

from runtime.errors import EffectNotAwaited
from runtime.safe_text import text_of

TRACEBACK_CHARACTERS = 8_000

_HOST = "runtime"
_HOST_FOLDER = str(Path(__file__).parent) + "/"
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def where_of(failure: BaseException) -> str:
    """`file:line` of the function's own code that failed; empty when it is not known.

    The last frame in a module that is not an installed package, or else in the handler's package.
    """
    if isinstance(failure, EffectNotAwaited):
        return failure.where
    seen: BaseException | None = failure
    while seen is not None:
        frames = [found for found in _walk(seen) if not _is_host(found[0])]
        if frames:
            package = _package_of(frames[0][0])
            own = [found for found in frames if not _is_installed(found[0])]
            own = own or [found for found in frames if _package_of(found[0]) == package]
            return place_of(own[-1][0].f_code.co_filename, own[-1][1])
        seen = seen.__cause__
    return ""


def is_own_code(filename: str) -> bool:
    """Whether a code object's file is the project's: neither installed, nor Python's, nor ours."""
    return not filename.startswith((*_INSTALLED, "<", _HOST_FOLDER))


def place_of(filename: str, line: int) -> str:
    """`file:line`, relative to the current folder when the file is in it."""
    path = Path(filename)
    folder = Path.cwd()
    return f"{path.relative_to(folder) if path.is_relative_to(folder) else path}:{line}"


def exc_info_of(failure: BaseException) -> ExcInfo:
    """The exception with its traceback from the function's own code on.

    Without a traceback when no frame is the function's, as for an error that the host raised.
    """
    trace = failure.__traceback__
    while trace is not None and _is_host(trace.tb_frame):
        trace = trace.tb_next
    return type(failure), failure, trace


def format_traceback(failure: BaseException) -> str:
    """The traceback as text that can be sent; only its end when it is too long."""
    try:
        lines = traceback.format_exception(*exc_info_of(failure))
    except BaseException:  # noqa: BLE001 - a function's own exception may break what prints it
        lines = traceback.format_tb(failure.__traceback__)
    return text_of("".join(lines)[-TRACEBACK_CHARACTERS:], TRACEBACK_CHARACTERS)


def _walk(failure: BaseException) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_tb(failure.__traceback__)


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_host(frame: FrameType) -> bool:
    return _package_of(frame) == _HOST


def _is_installed(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith((*_INSTALLED, "<"))
