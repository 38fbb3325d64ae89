"""The functions of a process, and their next versions, which are loaded beside the running ones."""

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from runtime.errors import ConfigError, Problem
from runtime.loader import file_reads
from runtime.loader.failure import LoadFailure, excerpt, excerpt_of
from runtime.loader.function import Function
from runtime.loader.loading import PlainImporter, find_name_problems, load, load_all
from runtime.loader.module import LoadError, shorten
from runtime.loader.sources import Source, Sources
from runtime.loader.versions import ModuleSet, ModuleVersions, VersionLoader, loader_of
from runtime.manifest import Manifest
from runtime.manifest.model import FunctionSpec
from runtime.observe.logs import get_logger

log = get_logger("runtime.reload")

MANIFESTS = "manifests"
"""The name under which a mistake is shown that is of no function."""


@dataclass(slots=True)
class Candidate:
    """The next versions of the functions; nothing uses them before `Project.commit`.

    Attributes:
        manifest: the manifest that the functions are of.
        functions: all wanted functions; a broken one is the version that runs.
        errors: why functions are broken, by name.
        modules: the new set of modules.
        problems: the errors as problems of the manifest's entries.
        raised: handlers' modules that raised something while they were imported.
    """

    manifest: Manifest
    functions: dict[str, Function]
    errors: dict[str, LoadFailure]
    modules: ModuleSet
    problems: list[Problem] = field(default_factory=list)
    raised: set[str] = field(default_factory=set)


class Project:
    """Loads the functions of a process, and loads again what has changed.

    A change is a change of content: of a module, of the modules that it needs, of an SQL file of
    its package, of a data file that it read (only with `from_source`), or of the manifest's entry.

    Args:
        from_source: never use Python's bytecode files, and follow data files. Without it the
            functions are imported as Python does it, and their first reload finds all modules
            again by their content.
    """

    def __init__(self, *, from_source: bool = False) -> None:
        self._from_source = from_source
        self._versions = ModuleVersions()
        self._imported: Sources | None = None
        self._functions: dict[str, Function] = {}
        self._refused: dict[str, tuple[Function, LoadFailure]] = {}
        self._hung: dict[tuple[str, bytes], LoadFailure] = {}
        self._is_installed = False

    @property
    def functions(self) -> Mapping[str, Function]:
        """The wanted functions."""
        return dict(self._functions)

    def load(self, manifest: Manifest) -> dict[str, Function]:
        """Load all functions; may be called again until the first reload.

        Raises:
            ConfigError: lists the problems of all functions.
        """
        if not self._from_source:
            importer = PlainImporter()
            self._functions = load_all(manifest, importer)
            self._imported = importer.sources
            return dict(self._functions)
        file_reads.enable()
        candidate = self.prepare(manifest)
        if candidate.problems:
            raise ConfigError(candidate.problems)
        self.commit(candidate)
        return candidate.functions

    def prepare(self, manifest: Manifest, *, retry: bool = False) -> Candidate:
        """Load what has changed, beside the running versions. May run in a thread of its own.

        Args:
            manifest: the wanted functions.
            retry: also try again what failed in the host, such as a `start`, though its content
                is the same.
        """
        self._install()
        problems = find_name_problems(manifest)
        sources = Sources()
        for spec in manifest.functions.values():
            sources.add_handler(_module_of(spec))
        unchanged = self._unchanged(sources)
        candidate = self._attempt(manifest, sources, unchanged, retry=retry)
        if candidate.raised and unchanged:
            # A module that is unchanged may hold what the old version of another one put there,
            # such as a table of SQLAlchemy. What counts is how a new process would fare.
            wider = {name for each in candidate.raised for name in sources.closure(each)}
            unchanged = self._unchanged(sources, also=wider)
            again = self._attempt(manifest, sources, unchanged, retry=retry)
            if len(again.errors) < len(candidate.errors):
                candidate = again
        candidate.problems[:0] = problems
        if problems:
            candidate.errors[MANIFESTS] = LoadFailure.of(problems)
        _warn_of_threads(candidate.modules, running=self._versions.current)
        return candidate

    def _attempt(
        self,
        manifest: Manifest,
        sources: Sources,
        unchanged: Mapping[str, ModuleType],
        *,
        retry: bool,
    ) -> Candidate:
        modules = self._versions.new_set(sources, unchanged)
        candidate = Candidate(manifest, {}, {}, modules)
        for name, spec in manifest.functions.items():
            is_same = _module_of(spec) in unchanged
            if not (is_same and self._settle_unchanged(candidate, name, spec, retry=retry)):
                self._load_one(candidate, name, spec)
        return candidate

    def commit(self, candidate: Candidate) -> None:
        """Make the candidate's functions the wanted ones, after `prepare` and before they run."""
        names = candidate.errors.keys() & candidate.functions.keys()
        current = self._versions.current
        left: dict[str, ModuleType] = {}
        if current is not None:
            loaded = {**current.modules, **self._versions.left}
            for name in names:
                module = _module_of(candidate.functions[name].spec)
                for each in current.sources.closure(module):
                    if each in loaded and each not in candidate.modules.modules:
                        left[each] = loaded[each]
        self._versions.make_current(candidate.modules, left)
        self._functions = dict(candidate.functions)
        self._refused = {
            name: refused
            for name, refused in self._refused.items()
            if candidate.errors.get(name) is refused[1]
        }

    def keep(self, refused: Function, running: Function | None, failure: LoadFailure) -> None:
        """Take note that the host could not start a version, and which one runs on.

        The refused version is wanted again when its content changes. Nothing is done when another
        version is wanted by now.

        Args:
            refused: the version.
            running: the last good version; None if there is none.
            failure: why the refused version did not start.
        """
        name = refused.name
        if self._functions.get(name) is not refused:
            return
        self._refused[name] = (refused, failure)
        if running is not None:
            self._functions[name] = running
        else:
            del self._functions[name]

    def give_up(self, thread: threading.Thread, limit_s: float) -> dict[str, LoadFailure]:
        """Take note that the thread of a `prepare` hangs, and find in which module.

        Returns:
            The failure, for each function of that module. The module is not tried again before its
            content changes.
        """
        stack = list(_project_frames(thread))
        if not stack:
            return {}
        (_, filename, line), (outermost, *_) = stack[0], stack[-1]
        place = shorten(filename, line)
        wrong = f"the import takes longer than {limit_s:g} s"
        failure = LoadFailure(place, wrong, "move the work into start(ctx)", excerpt_of(place))
        self._hung[outermost.source.name, outermost.source.digest] = failure
        names = [
            name
            for name, function in self._functions.items()
            if _module_of(function.spec) == outermost.source.name
        ]
        return dict.fromkeys(names or [outermost.source.name], failure)

    def data_files(self) -> frozenset[Path]:
        """The data files that modules read while they were imported or started."""
        current = self._versions.current
        modules = list(current.modules.values()) if current else []
        return frozenset(Path(file) for loader in _loaders(modules) for file in loader.reads)

    def folders(self) -> tuple[frozenset[Path], frozenset[Path]]:
        """The folders of top-level modules, and those of packages, with all that is in them."""
        current = self._versions.current
        sources = current.sources if current else self._imported
        found = [each for each in sources.modules.values() if each.is_project] if sources else []
        flat = {Path(each.path).parent for each in found if each.path and "." not in each.name}
        trees = {Path(folder) for each in found for folder in each.folders}
        trees |= {Path(each.path).parent for each in found if each.path and "." in each.name}
        return frozenset(flat | {Path.cwd()}), frozenset(trees)

    def close(self) -> None:
        """Give the import system back; for tests."""
        if self._is_installed:
            self._is_installed = False
            self._versions.uninstall()

    def _install(self) -> None:
        if self._is_installed:
            return
        self._is_installed = True
        self._versions.install()
        if self._imported is not None:
            self._versions.adopt(self._imported)

    def _unchanged(
        self, sources: Sources, also: AbstractSet[str] = frozenset()
    ) -> dict[str, ModuleType]:
        """The running modules that neither changed nor need a module that changed.

        Args:
            sources: the modules as they are on the disk.
            also: names that count as changed.
        """
        running = self._versions.current
        if running is None:
            return {}
        waiting = [
            name
            for name, source in sources.modules.items()
            if name in also or _has_changed(source, sources, running)
        ]
        importers: dict[str, list[str]] = {}
        for name in sources.modules:
            for needed in sources.needs(name):
                importers.setdefault(needed, []).append(name)
        changed: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in changed:
                changed.add(name)
                waiting += importers.get(name, ())
        return {
            name: module
            for name, module in running.modules.items()
            if name in sources.modules and name not in changed
        }

    def _settle_unchanged(
        self, candidate: Candidate, name: str, spec: FunctionSpec, *, retry: bool
    ) -> bool:
        """Keep a function whose module is the same; False if it must be loaded all the same."""
        running = self._functions.get(name)
        refused, why = self._refused.get(name, (None, None))
        if refused is not None and why is not None and refused.spec == spec and not retry:
            candidate.errors[name] = why
        elif refused is not None or running is None or running.spec != spec:
            return False
        if running is not None:
            candidate.functions[name] = running
        return True

    def _load_one(self, candidate: Candidate, name: str, spec: FunctionSpec) -> None:
        importer = _SetImporter(candidate.modules, self._functions)
        positions = candidate.manifest.positions
        source = candidate.modules.sources.modules.get(_module_of(spec))
        if source is not None and (hung := self._hung.get((source.name, source.digest))):
            candidate.errors[name] = hung
            if name in self._functions:
                candidate.functions[name] = self._functions[name]
            return
        try:
            function = load(name, spec, positions=positions, importer=importer)
        except ConfigError as error:
            candidate.problems += error.problems
            candidate.errors[name] = _failure_of(error, candidate.modules.sources)
            if _has_raised(error):
                candidate.raised.add(_module_of(spec))
            if name in self._functions:
                candidate.functions[name] = self._functions[name]
        else:
            candidate.functions[name] = function


class _SetImporter:
    """Imports handlers' modules into a set."""

    def __init__(self, modules: ModuleSet, running: Mapping[str, Function]) -> None:
        self._modules = modules
        self._running = running

    def import_module(self, name: str) -> ModuleType:
        self._check_syntax(name)
        return self._modules.load(name)

    def version_of(self, name: str) -> str:
        sources = self._modules.sources
        source = sources.modules.get(name)
        if source is not None and not source.is_project:
            # An installed module is not loaded again, whatever has become of its files.
            for function in self._running.values():
                if _module_of(function.spec) == name:
                    return function.code_version
        needed = [self._modules.modules.get(each) for each in sources.closure(name)]
        reads: dict[str, bytes] = {}
        for loader in _loaders(module for module in needed if module is not None):
            reads |= loader.reads
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


def _has_changed(source: Source, sources: Sources, running: ModuleSet) -> bool:
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


def _loaders(modules: Iterable[ModuleType]) -> Iterator[VersionLoader]:
    for module in modules:
        loader = loader_of(vars(module))
        if loader is not None:
            yield loader


def _has_raised(error: ConfigError) -> bool:
    cause = error.__cause__.__cause__ if error.__cause__ else None
    return cause is not None and not isinstance(cause, SyntaxError | ModuleNotFoundError)


def _warn_of_threads(modules: ModuleSet, *, running: ModuleSet | None) -> None:
    known = set(running.modules.values()) if running else set()
    for loader in _loaders(each for each in modules.modules.values() if each not in known):
        for filename, line in loader.threads:
            log.warning(
                "A module started a thread while it was imported, which no reload ends",
                where=shorten(filename, line),
                remedy="start it in start(ctx), and end it in stop(ctx)",
            )


def _project_frames(thread: threading.Thread) -> Iterator[tuple[VersionLoader, str, int]]:
    """The project's code on a thread's stack, innermost first."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - Python's own way
    while frame is not None:
        loader = loader_of(frame.f_globals)
        if loader is not None:
            yield loader, frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _module_of(spec: FunctionSpec) -> str:
    return spec.handler.partition(":")[0]


def _failure_of(error: ConfigError, sources: Sources) -> LoadFailure:
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


__all__ = ["MANIFESTS", "Candidate", "Project"]
