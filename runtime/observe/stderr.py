"""Standard error: whole entries, and on a terminal one line in passing, which the next replaces."""

import contextlib
import sys
import threading

_ERASE = "\r\x1b[K"
_lock = threading.Lock()
_passing = [False]


def write(text: str) -> None:
    """Write whole lines, not in the middle of others, to whatever `sys.stderr` is at this moment.

    A terminal that is gone, or a full disk, must not fail the work that logs.
    """
    with contextlib.suppress(OSError), _lock:
        sys.stderr.write(f"{_erased()}{text}\n")


def show_in_passing(text: str) -> None:
    """Show one line until something else is written; `text` fits the terminal."""
    with contextlib.suppress(OSError), _lock:
        sys.stderr.write(f"{_erased()}{text}")
        sys.stderr.flush()
        _passing[0] = True


def erase_passing() -> None:
    """Take the line away that is shown in passing."""
    with contextlib.suppress(OSError), _lock:
        sys.stderr.write(_erased())
        sys.stderr.flush()


def _erased() -> str:
    was_shown, _passing[0] = _passing[0], False
    return _ERASE if was_shown else ""
