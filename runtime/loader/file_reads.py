"""Records which files the project's modules read while they are imported or started.

Threads that a module starts while it is imported are recorded too, because no reload ends them.
Python calls an audit hook for every file that is opened, and a hook cannot be removed. So it is
added only when `enable` is called, and it does nothing outside of `recorded()`.
"""

import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from runtime.loader.ownership import may_be_data

if TYPE_CHECKING:
    from runtime.loader.version_loader import VersionLoader

_MODES = frozenset("rbtU")
IMPORT, START = "import", "start"
_during: ContextVar[str] = ContextVar("what is recorded", default="")
_is_enabled = False


def enable() -> None:
    """Record from now on, for the rest of the process."""
    global _is_enabled  # noqa: PLW0603 - a hook is the process's, and cannot be removed
    if not _is_enabled:
        _is_enabled = True
        sys.addaudithook(_hook)
        _hear_threads()


@contextmanager
def recorded(during: str) -> Iterator[None]:
    """Record what happens inside, in threads that copy the context too.

    Args:
        during: IMPORT or START.
    """
    token = _during.set(during)
    try:
        yield
    finally:
        _during.reset(token)


def digest_of(file: str) -> bytes:
    """A digest of a file's content; empty when it cannot be read."""
    try:
        with Path(file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return b""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _during.get():
        _hear_open(*arguments)


def _hear_threads() -> None:
    # Python 3.11 has no audit event for a new thread.
    start = threading.Thread.start

    @functools.wraps(start)
    def heard(thread: threading.Thread) -> None:
        if _during.get() == IMPORT:
            _record_thread()
        start(thread)

    threading.Thread.start = heard  # type: ignore[method-assign,assignment]


def _hear_open(path: object, mode: str | None, flags: int) -> None:
    if not isinstance(path, str | bytes) or flags & (os.O_WRONLY | os.O_RDWR):
        return
    if mode is not None and not _MODES.issuperset(mode):
        return
    token = _during.set("")
    try:
        _record(Path(os.fsdecode(path)).absolute())
    finally:
        _during.reset(token)


def _record_thread() -> None:
    frame = sys._getframe(2)  # noqa: SLF001 - Python's own way
    while frame is not None:
        threads = getattr(frame.f_globals.get("__loader__"), "threads", None)
        if threads is not None:
            threads.append((frame.f_code.co_filename, frame.f_lineno))
            return
        frame = frame.f_back  # type: ignore[assignment]


def _record(file: Path) -> None:
    """Count the file to the project module whose code reads it.

    While modules are imported that is the innermost one whose body runs; the functions of other
    modules that it calls are only its helpers. Of a `start` it is each module on the stack.
    """
    during_import, helpers = False, []
    for loader, is_body in _loaders_on_stack():
        helpers.append(loader)
        if is_body:
            during_import = True
            break
    if not helpers or not may_be_data(file) or not file.is_file():
        return
    digest, name = digest_of(str(file)), str(file)
    if not during_import:
        for loader in helpers:
            loader.start_reads[name] = digest
        return
    *helpers, reader = helpers
    reader.reads[name] = digest
    reader.helpers.setdefault(name, set()).update(each.name for each in helpers)


def _loaders_on_stack() -> Iterator[tuple["VersionLoader", bool]]:
    """The loaders of the project's code on the stack, and whether it is a module's body."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - Python's own way
    while frame is not None:
        loader = frame.f_globals.get("__loader__")
        if loader is not None and hasattr(loader, "start_reads"):
            yield loader, frame.f_code.co_name == "<module>"
        frame = frame.f_back
