"""Writes whole entries to standard error, and on a terminal one progress line at the end."""

import contextlib
import sys
import threading

_ERASE = "\r\x1b[K"
_lock = threading.Lock()
_passing = [False]


def write(text: str) -> None:
    """Write whole lines to the current `sys.stderr`, never inside other lines.

    A closed terminal, or a full disk, must not fail the code that logs.
    """
    with contextlib.suppress(OSError), _lock:
        sys.stderr.write(f"{_erased()}{text}\n")


def show_in_passing(text: str) -> None:
    """Show a progress line until something else is written; `text` fits the terminal."""
    with contextlib.suppress(OSError), _lock:
        sys.stderr.write(f"{_erased()}{text}")
        sys.stderr.flush()
        _passing[0] = True


def erase_passing() -> None:
    """Erase the progress line."""
    with contextlib.suppress(OSError), _lock:
        sys.stderr.write(_erased())
        sys.stderr.flush()


def _erased() -> str:
    was_shown, _passing[0] = _passing[0], False
    return _ERASE if was_shown else ""
