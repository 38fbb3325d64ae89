"""The functions of a process, and their next versions, which are loaded beside the running ones."""

import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import ModuleType

from runtime.errors import ConfigError
from runtime.loader import file_reads
from runtime.loader.candidate import MANIFESTS, Again, Candidate
from runtime.loader.failure import LoadFailure, excerpt_of
from runtime.loader.function import Function
from runtime.loader.loading import PlainImporter, find_name_problems, load, load_all
from runtime.loader.module import shorten
from runtime.loader.set_changes import has_changed, keeping_helpers, project_frames, warn_of_threads
from runtime.loader.set_importer import (
    SetImporter,
    failure_of,
    has_raised,
    loaders_of,
    module_of,
)
from runtime.loader.sources import Sources
from runtime.loader.versions import ModuleVersions
from runtime.manifest import Manifest
from runtime.manifest.model import FunctionSpec


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
        self._plain = PlainImporter()
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

        What was imported before is not read from the disk again.

        Raises:
            ConfigError: lists the problems of all functions.
        """
        if not self._from_source:
            self._functions = load_all(manifest, self._plain, self._functions)
            self._imported = self._plain.sources
            return dict(self._functions)
        file_reads.enable()
        candidate = self.prepare(manifest)
        if candidate.problems:
            raise ConfigError(candidate.problems)
        self.commit(candidate)
        return candidate.functions

    def prepare(self, manifest: Manifest, again: Again | None = None) -> Candidate:
        """Load what has changed, beside the running versions. May run in a thread of its own.

        Args:
            manifest: the wanted functions.
            again: what to try again though its content is the same.
        """
        again = again or Again()
        self._install()
        problems = find_name_problems(manifest)
        sources = Sources()
        for spec in manifest.functions.values():
            sources.add_handler(module_of(spec))
        if self._versions.current is not None:
            for importer, name in self._versions.current.sources.found_later:
                sources.add_need(importer, name)
        unchanged = self._unchanged(sources)
        candidate = self._attempt(manifest, sources, unchanged, again)
        wider = keeping_helpers(candidate.modules, self._versions.current)
        if candidate.raised and unchanged:
            # A module that is unchanged may hold what the old version of another one put there,
            # such as a table of SQLAlchemy. What counts is how a new process would fare.
            wider |= {name for each in candidate.raised for name in sources.closure(each)}
        if wider:
            other = self._attempt(manifest, sources, self._unchanged(sources, also=wider), again)
            if not candidate.raised or len(other.errors) < len(candidate.errors):
                candidate = other
        candidate.problems[:0] = problems
        if problems:
            candidate.errors[MANIFESTS] = LoadFailure.of(problems)
        warn_of_threads(candidate.modules, running=self._versions.current)
        return candidate

    def _attempt(
        self,
        manifest: Manifest,
        sources: Sources,
        unchanged: Mapping[str, ModuleType],
        again: Again,
    ) -> Candidate:
        modules = self._versions.new_set(sources, unchanged)
        candidate = Candidate(manifest, {}, {}, modules)
        for name, spec in manifest.functions.items():
            is_same = module_of(spec) in unchanged
            if not (is_same and self._settle_unchanged(candidate, name, spec, again)):
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
                module = module_of(candidate.functions[name].spec)
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
        stack = list(project_frames(thread))
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
            if module_of(function.spec) == outermost.source.name
        ]
        return dict.fromkeys(names or [outermost.source.name], failure)

    def data_files(self) -> frozenset[Path]:
        """The data files that modules read while they were imported or started."""
        current = self._versions.current
        modules = list(current.modules.values()) if current else []
        return frozenset(Path(file) for loader in loaders_of(modules) for file in loader.all_reads)

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
            if name in also or has_changed(source, sources, running)
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
        self, candidate: Candidate, name: str, spec: FunctionSpec, again: Again
    ) -> bool:
        """Keep a function whose module is the same; False if it must be loaded all the same."""
        running = self._functions.get(name)
        refused, why = self._refused.get(name, (None, None))
        is_asked = again.concerns(candidate.modules.sources, module_of(spec))
        if refused is not None and why is not None and refused.spec == spec and not is_asked:
            candidate.errors[name] = why
        elif refused is not None or running is None or running.spec != spec:
            return False
        if running is not None:
            candidate.functions[name] = running
        return True

    def _load_one(self, candidate: Candidate, name: str, spec: FunctionSpec) -> None:
        importer = SetImporter(candidate.modules, self._functions)
        positions = candidate.manifest.positions
        source = candidate.modules.sources.modules.get(module_of(spec))
        if source is not None and (hung := self._hung.get((source.name, source.digest))):
            candidate.errors[name] = hung
            if name in self._functions:
                candidate.functions[name] = self._functions[name]
            return
        try:
            function = load(name, spec, positions=positions, importer=importer)
        except ConfigError as error:
            candidate.problems += error.problems
            candidate.errors[name] = failure_of(error, candidate.modules.sources)
            if has_raised(error):
                candidate.raised.add(module_of(spec))
            if name in self._functions:
                candidate.functions[name] = self._functions[name]
        else:
            candidate.functions[name] = function


__all__ = ["Project"]
