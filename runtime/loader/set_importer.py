"""Imports handlers' modules into a set of modules, and explains why one cannot be imported."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from runtime.errors import ConfigError
from runtime.loader.failure import LoadFailure, excerpt, excerpt_of
from runtime.loader.function import Function
from runtime.loader.module import LoadError, shorten
from runtime.loader.sources import Source, Sources
from runtime.loader.version_loader import VersionLoader, loader_of
from runtime.loader.versions import ModuleSet
from runtime.manifest.model import FunctionSpec


class SetImporter:
    """Imports handlers' modules into a set."""

    def __init__(self, modules: ModuleSet, running: Mapping[str, Function]) -> None:
        self._modules = modules
        self._running = running

    def import_module(self, name: str) -> ModuleType:
        """The set's module; nothing is executed while a needed module is no Python."""
        self._check_syntax(name)
        return self._modules.load(name)

    def version_of(self, name: str) -> str:
        """The version of a module's code, with the data files that it has read."""
        sources = self._modules.sources
        source = sources.modules.get(name)
        if source is not None and not source.is_project:
            # An installed module is not loaded again, whatever has become of its files.
            for function in self._running.values():
                if module_of(function.spec) == name:
                    return function.code_version
        needed = [self._modules.modules.get(each) for each in sources.closure(name)]
        reads: dict[str, bytes] = {}
        for loader in loaders_of(module for module in needed if module is not None):
            reads |= loader.all_reads
        return sources.version(name, [reads[file] for file in sorted(reads)])

    def _check_syntax(self, name: str) -> None:
        """Compile the needed modules that are new, before the first of them is executed.

        Raises:
            SyntaxError: a module is not Python.
        """
        sources = self._modules.sources
        for each in sorted(sources.closure(name)):
            source = sources.modules[each]
            if source.is_project and source.path and each not in self._modules.modules:
                _compile(source)


def _compile(source: Source) -> None:
    try:
        compile(source.data, source.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError) and error.filename:
            raise
        # A zero byte, of which Python does not tell the place.
        line = source.data.count(b"\n", 0, max(0, source.data.find(b"\0"))) + 1
        raise SyntaxError(str(error), (source.path, line, None, None)) from error


def has_raised(error: ConfigError) -> bool:
    """Whether a module raised something, other than for a file that is missing or no Python."""
    cause = error.__cause__.__cause__ if error.__cause__ else None
    return cause is not None and not isinstance(cause, SyntaxError | ModuleNotFoundError)


def failure_of(error: ConfigError, sources: Sources) -> LoadFailure:
    """The failure of a function, with the line in the source that was loaded."""
    cause = error.__cause__
    if not isinstance(cause, LoadError) or cause.place is None:
        return LoadFailure.of(error.problems)
    filename, line = cause.place
    path = str(Path(filename))
    for source in sources.modules.values():
        if source.path == path:
            text = source.data.decode(errors="replace")
            return LoadFailure(
                shorten(path, line), cause.short, cause.remedy, excerpt(text.splitlines(), line)
            )
    where = shorten(path, line)
    return LoadFailure(where, cause.short, cause.remedy, excerpt_of(where))


def loaders_of(modules: Iterable[ModuleType]) -> Iterator[VersionLoader]:
    """The loaders of the modules that are project files."""
    for module in modules:
        loader = loader_of(vars(module))
        if loader is not None:
            yield loader


def module_of(spec: FunctionSpec) -> str:
    """The dotted name of a handler's module."""
    return spec.handler.partition(":")[0]


__all__ = ["SetImporter", "failure_of", "has_raised", "loaders_of", "module_of"]
