"""Compiles one version of a module, and lets tracebacks show its lines."""

import importlib.util
import linecache
import weakref
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from runtime.loader.sources import Source

if TYPE_CHECKING:
    from runtime.loader.versions import ModuleSet


class VersionLoader(SourceFileLoader):
    """The `__loader__` of one version of a module; lives as long as the module's globals.

    Attributes:
        source: the source that was executed.
        modules: the newest set that the module is in.
        reads: digests of the data files that the module read while it was imported.
        helpers: by data file, the modules whose functions the module called to read it.
        start_reads: digests of the data files that the module's `start` read, or that of the
            version before.
        threads: `file:line` of the threads that it started while it was imported.
    """

    def __init__(self, source: Source, filename: str, modules: "ModuleSet") -> None:
        super().__init__(source.name, filename)
        self.source = source
        self.modules = modules
        self.reads: dict[str, bytes] = {}
        self.helpers: dict[str, set[str]] = {}
        self.start_reads: dict[str, bytes] = {}
        self.threads: list[tuple[str, int]] = []

    @property
    def all_reads(self) -> dict[str, bytes]:
        """Digests of all data files that the module has read."""
        return {**self.start_reads, **self.reads}

    def get_code(self, fullname: str) -> CodeType:
        """Compile the bytes of this version."""
        code: CodeType = self.source_to_code(self.source.data, self.path)
        return code

    def get_source(self, fullname: str) -> str:
        """The text of this version."""
        return importlib.util.decode_source(self.source.data)


class Filenames:
    """Spellings of paths: one for each living version of a file."""

    def __init__(self) -> None:
        self._held: set[str] = set()

    def free(self, path: str) -> str:
        """A spelling of a path that no living version has."""
        place = Path(path)
        spelling, dots = path, ""
        while spelling in self._held:
            dots += "./"
            spelling = f"{place.parent}/{dots}{place.name}"
        return spelling

    def hold(self, spelling: str, loader: VersionLoader) -> None:
        """Show a version's lines under a spelling, as long as the version lives."""
        self._held.add(spelling)
        data = loader.source.data
        try:
            lines = importlib.util.decode_source(data).splitlines(keepends=True)
        except (SyntaxError, UnicodeDecodeError):
            lines = data.decode(errors="replace").splitlines(keepends=True)
        # Without a time, linecache keeps the entry whatever becomes of the file.
        linecache.cache[spelling] = (len(data), None, lines, spelling)
        weakref.finalize(loader, self._release, spelling).atexit = False

    def _release(self, spelling: str) -> None:
        self._held.discard(spelling)
        linecache.cache.pop(spelling, None)


def loader_of(namespace: Mapping[str, Any]) -> VersionLoader | None:
    """The loader of the version whose globals these are; None for other modules."""
    found = namespace.get("__loader__")
    return found if type(found) is VersionLoader else None


__all__ = ["Filenames", "VersionLoader", "loader_of"]
