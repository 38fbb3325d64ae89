"""Records which data files the project's modules read while they are imported or started.

Python calls an audit hook for every file that is opened, and a hook cannot be removed. So it is
added only when `enable` is called, and it does nothing outside of `recorded()`.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from runtime.loader.ownership import may_be_data

_MODES = frozenset("rbtU")
_is_recording: ContextVar[bool] = ContextVar("records file reads", default=False)
_is_enabled = False


def enable() -> None:
    """Record from now on, for the rest of the process."""
    global _is_enabled  # noqa: PLW0603 - a hook is the process's, and cannot be removed
    if not _is_enabled:
        _is_enabled = True
        sys.addaudithook(_hook)


@contextmanager
def recorded() -> Iterator[None]:
    """Record what is read inside, in threads that copy the context too."""
    token = _is_recording.set(True)
    try:
        yield
    finally:
        _is_recording.reset(token)


def digest_of(file: str) -> bytes:
    """A digest of a file's content; empty when it cannot be read."""
    try:
        with Path(file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return b""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _is_recording.get():
        return
    path, mode, flags = arguments
    if not isinstance(path, str | bytes) or flags & (os.O_WRONLY | os.O_RDWR):
        return
    if mode is not None and not _MODES.issuperset(mode):
        return
    token = _is_recording.set(False)
    try:
        _record(Path(path.decode() if isinstance(path, bytes) else path).absolute())
    finally:
        _is_recording.reset(token)


def _record(file: Path) -> None:
    """Count the file to every project module whose code is on the stack.

    A module that keeps what it read must be executed again, and so must whoever called it.
    """
    readers = [loader for loader in _loaders_on_stack() if loader is not None]
    if readers and may_be_data(file) and file.is_file():
        digest = digest_of(str(file))
        for reads in readers:
            reads[str(file)] = digest


def _loaders_on_stack() -> Iterator[dict[str, bytes] | None]:
    frame = sys._getframe(1)  # noqa: SLF001 - Python's own way
    while frame is not None:
        yield getattr(frame.f_globals.get("__loader__"), "reads", None)
        frame = frame.f_back  # type: ignore[assignment]
