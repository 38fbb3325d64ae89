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
    return loader is not None and bool(_changed_reads(loader))


def keeping_helpers(modules: ModuleSet, running: ModuleSet | None) -> set[str]:
    """Modules that keep a data file's old content, so that a new module did not read it again."""
    found: set[str] = set()
    for name, module in modules.modules.items():
        before = running.modules.get(name) if running is not None else None
        new = loader_of(vars(module))
        old = loader_of(vars(before)) if before is not None else None
        if new is None or old is None or new is old or new.source.data != old.source.data:
            continue
        for file in _changed_reads(old) & old.helpers.keys() - new.reads.keys():
            found |= old.helpers[file]
    return found


def _changed_reads(loader: VersionLoader) -> set[str]:
    return {
        file for file, digest in loader.all_reads.items() if file_reads.digest_of(file) != digest
    }


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


__all__ = ["has_changed", "keeping_helpers", "project_frames", "warn_of_threads"]
