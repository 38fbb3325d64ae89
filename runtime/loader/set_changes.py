"""Compares a set of modules with the files, and looks at what a set did while it was loaded."""

import sys
import threading
from collections.abc import Iterator

from runtime.loader import file_reads
from runtime.loader.module import shorten
from runtime.loader.set_importer import loaders_of
from runtime.loader.sources import Source, Sources
from runtime.loader.version_loader import VersionLoader, loader_of
from runtime.loader.versions import ModuleSet
from runtime.observe.logs import get_logger

log = get_logger("runtime.reload")


def has_changed(source: Source, sources: Sources, running: ModuleSet) -> bool:
    """Whether a module's file, its imports, or a data file that it read, are not as they were."""
    before = running.sources.modules.get(source.name)
    if before is None:
        return True
    if (before.path, before.folders, before.digest) != (source.path, source.folders, source.digest):
        return True
    if running.sources.needs(source.name) != sources.needs(source.name):
        return True
    module = running.modules.get(source.name)
    loader = loader_of(vars(module)) if module is not None else None
    reads = loader.reads.items() if loader is not None else ()
    return any(file_reads.digest_of(file) != digest for file, digest in reads)


def warn_of_threads(modules: ModuleSet, *, running: ModuleSet | None) -> None:
    """Log the threads that new modules have started while they were imported."""
    known = set(running.modules.values()) if running else set()
    for loader in loaders_of(each for each in modules.modules.values() if each not in known):
        for filename, line in loader.threads:
            log.warning(
                "A module started a thread while it was imported, which no reload ends",
                where=shorten(filename, line),
                remedy="start it in start(ctx), and end it in stop(ctx)",
            )


def project_frames(thread: threading.Thread) -> Iterator[tuple[VersionLoader, str, int]]:
    """The project's code on a thread's stack, innermost first."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - Python's own way
    while frame is not None:
        loader = loader_of(frame.f_globals)
        if loader is not None:
            yield loader, frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


__all__ = ["has_changed", "project_frames", "warn_of_threads"]
