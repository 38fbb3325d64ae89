"""Imports the project's modules in versions that live beside each other.

A `ModuleSet` is one consistent version of all project modules: what its modules import is of the
same set. A new set shares the modules with the set before that neither changed nor need a module
that changed, and executes all others from bytes that were read once; Python's bytecode files are
never read. Nothing of an older set is patched: it lives as long as something refers to it.

An import statement calls `builtins.__import__` with the importing module's globals, whose
`__loader__` names the set. Source: Python language reference, section 5.6 and `__import__`.
"""

import builtins
import importlib
import importlib.abc
import importlib.util
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

from runtime.loader.collectors import ModuleCollectors
from runtime.loader.current_module import CurrentModule, is_current_module
from runtime.loader.file_reads import IMPORT, digest_of, recorded
from runtime.loader.finder import Finder
from runtime.loader.package_view import view_of
from runtime.loader.sources import Source, Sources
from runtime.loader.version_loader import Filenames, VersionLoader, loader_of


class ModuleSet:
    """One consistent version of the project's modules.

    Args:
        sources: the modules on the disk.
        versions: the sets of this process.
        shared: modules of the set before that are unchanged.

    Attributes:
        modules: the loaded modules, by name.
        foreign: names of modules that are not the project's, as far as they were asked for.
    """

    def __init__(
        self, sources: Sources, versions: "ModuleVersions", shared: Mapping[str, ModuleType]
    ) -> None:
        self.sources = sources
        self.modules: dict[str, ModuleType] = dict(shared)
        self.foreign: set[str] = set()
        self._versions = versions
        self._lock = threading.RLock()
        self._separate_packages()

    def owns(self, top: str) -> bool:
        """Whether a top-level name is a project module, was one, or is a package that has some."""
        return self.source_of(top) is not None or is_current_module(sys.modules.get(top))

    def load(self, name: str) -> ModuleType:
        """This set's module of a dotted name; the ordinary module if it is not the project's.

        Raises:
            ModuleNotFoundError: there is no such module.
            Exception: whatever the module raised.
        """
        with self._lock:
            found = self.modules.get(name)
            if found is not None:
                return found
            parent = name.rpartition(".")[0]
            around = self.load(parent) if parent else None
            if name in self.modules:
                return self.modules[name]  # The parent imported it.
            source = self.source_of(name)
            if source is not None:
                self._note_importer(name, sys._getframe(1))  # noqa: SLF001 - Python's own way
                return self._execute(source, around)
            if is_current_module(sys.modules.get(name)):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            module = importlib.import_module(name)
            if around is not None and parent in self.modules:
                setattr(around, name.rpartition(".")[2], module)
            return module

    def import_from(self, name: str, wanted: Sequence[str]) -> ModuleType:
        """The module of `from name import …`, with those of its submodules that are wanted."""
        module = self.load(name)
        if hasattr(module, "__path__"):
            names = list(wanted)
            if "*" in names:
                names += [str(each) for each in getattr(module, "__all__", ())]
            for each in names:
                if each != "*" and not hasattr(module, each):
                    self._load_if_there(f"{module.__name__}.{each}")
        return module

    def take_over(self) -> None:
        """Make this the set of its shared modules, for what they import from now on."""
        for module in self.modules.values():
            loader = loader_of(vars(module))
            if loader is not None:
                loader.modules = self

    def _separate_packages(self) -> None:
        """Give this set packages of its own where not all submodules are shared."""
        running = self._versions.current
        apart: set[str] = set()
        for name in sorted(self.modules, key=lambda each: -each.count(".")):
            source = self.sources.modules.get(name)
            if running is None or source is None or not source.folders:
                continue
            before = {each for each in running.modules if each.rpartition(".")[0] == name}
            here = before & self.modules.keys()
            if here == before and apart.isdisjoint(before):
                continue
            apart.add(name)
            if not source.path:
                del self.modules[name]  # There is nothing to execute.
                continue
            submodules = {each.rpartition(".")[2]: self.modules[each] for each in here}
            hidden = [each.rpartition(".")[2] for each in before - here]
            self.modules[name] = view_of(self.modules[name], submodules, hidden)

    def _note_importer(self, name: str, frame: FrameType | None) -> None:
        """Let the module whose code imports another by a computed name need it."""
        while frame is not None:
            loader = loader_of(frame.f_globals)
            if loader is not None:
                if name not in self.sources.needs(loader.name):
                    self.sources.add_need(loader.name, name)
                return
            frame = frame.f_back

    def _load_if_there(self, name: str) -> None:
        try:
            self.load(name)
        except ModuleNotFoundError as missing:
            if missing.name != name:
                raise

    def source_of(self, name: str) -> Source | None:
        """The project's module of this name in this set, whether it is loaded or not."""
        found = self.sources.modules.get(name)
        return found if found is not None and found.is_project else self.sources.find(name)

    def _execute(self, source: Source, around: ModuleType | None) -> ModuleType:
        name, last = source.name, source.name.rpartition(".")[2]
        spec = self._spec(source)
        module = importlib.util.module_from_spec(spec)
        spec._initializing = True  # type: ignore[attr-defined]  # noqa: SLF001 - for the text of an ImportError in a cycle
        self.modules[name] = module
        current = self._versions.stand_in(name)
        if not source.path:
            self._add_submodules(module)
        if around is not None:
            # Python sets it after the import, and finds it in sys.modules before.
            setattr(around, last, module)
        try:
            if source.path and spec.loader is not None:
                with recorded(IMPORT), self._versions.collectors.replaced(name):
                    spec.loader.exec_module(module)
        except BaseException:
            del self.modules[name]
            if around is not None and vars(around).get(last) is module:
                delattr(around, last)
            self._versions.forget_unless_loaded(name)
            raise
        finally:
            spec._initializing = False  # type: ignore[attr-defined]  # noqa: SLF001 - as above
        replaced = sys.modules.get(name)
        if replaced is not None and replaced is not current:
            # A module may put another object in its place. Source: Python's import reference.
            self.modules[name], sys.modules[name] = replaced, current
        return self.modules[name]

    def _start_reads(self, name: str) -> dict[str, bytes]:
        """What the running version's `start` read: the new one's is yet to come."""
        running = self._versions.current
        module = running.modules.get(name) if running is not None else None
        loader = loader_of(vars(module)) if module is not None else None
        return {file: digest_of(file) for file in loader.start_reads} if loader else {}

    def _add_submodules(self, package: ModuleType) -> None:
        """Give a package without a file the submodules that are shared with the set before."""
        for name, module in self.modules.items():
            parent, _, last = name.rpartition(".")
            if parent == package.__name__:
                setattr(package, last, module)

    def _spec(self, source: Source) -> ModuleSpec:
        folders = list(source.folders) if source.folders else None
        if not source.path:
            spec = ModuleSpec(source.name, None, is_package=True)
            spec.submodule_search_locations = folders
            return spec
        filename = self._versions.filename_of(source)
        loader = VersionLoader(source, filename, self)
        loader.start_reads |= self._start_reads(source.name)
        self._versions.show_source(loader)
        found = importlib.util.spec_from_file_location(
            source.name, filename, loader=loader, submodule_search_locations=folders
        )
        if found is None:
            raise ModuleNotFoundError(f"No module named {source.name!r}", name=source.name)
        return found


class ModuleVersions:
    """The sets of a process, and their place in Python's import system.

    Attributes:
        current: the set for whoever is not in a set, such as an installed package.
        left: modules of older sets that run on, as their new source cannot be loaded.
        collectors: the Prometheus metrics of the modules.
    """

    def __init__(self) -> None:
        self.current: ModuleSet | None = None
        self.left: dict[str, ModuleType] = {}
        self._sets: weakref.WeakSet[ModuleSet] = weakref.WeakSet()
        self.collectors = ModuleCollectors()
        self._files = Filenames()
        self._finder = Finder(self.set_of, self.stand_in)
        self._import = builtins.__import__

    def install(self) -> None:
        """Let import statements of project modules go to their set."""
        sys.meta_path.insert(0, self._finder)
        self._import = builtins.__import__
        builtins.__import__ = self._import_statement

    def uninstall(self) -> None:
        """Undo `install`, and remove the project's modules; for tests."""
        sys.meta_path.remove(self._finder)
        builtins.__import__ = self._import
        for name in [each for each, module in sys.modules.items() if is_current_module(module)]:
            del sys.modules[name]

    def adopt(self, sources: Sources) -> None:
        """Make the project's modules that Python imported the first set."""
        imported = {
            name: sys.modules[name]
            for name, source in sources.modules.items()
            if source.is_project and name in sys.modules
        }
        adopted = self.new_set(sources, imported)
        for name, module in imported.items():
            source = sources.modules[name]
            if source.path:
                vars(module)["__loader__"] = VersionLoader(source, source.path, adopted)
                self._files.hold(source.path, vars(module)["__loader__"])
            self.stand_in(name)
        self.collectors.adopt(imported)
        self.current = adopted

    def new_set(self, sources: Sources, shared: Mapping[str, ModuleType]) -> ModuleSet:
        """A set that is not current yet."""
        made = ModuleSet(sources, self, shared)
        self._sets.add(made)
        return made

    def make_current(self, modules: ModuleSet, left: Mapping[str, ModuleType]) -> None:
        """Let everybody outside of a set meet this one.

        Args:
            modules: the set.
            left: see the attribute.
        """
        modules.take_over()
        self.current, self.left = modules, dict(left)
        known = modules.modules.keys() | left.keys()
        for name in [each for each, module in sys.modules.items() if is_current_module(module)]:
            if name not in known and modules.sources.find(name) is None:
                del sys.modules[name]

    def set_of(self, frame: FrameType | None) -> ModuleSet | None:
        """The set of the innermost project code on a stack; the current one without any."""
        while frame is not None:
            loader = loader_of(frame.f_globals)
            if loader is not None:
                return loader.modules
            frame = frame.f_back
        return self.current

    def stand_in(self, name: str) -> CurrentModule:
        """What stands in `sys.modules` for a project module."""
        found = sys.modules.get(name)
        if not isinstance(found, CurrentModule):
            found = sys.modules[name] = CurrentModule(name, self._resolve)
        return found

    def forget_unless_loaded(self, name: str) -> None:
        """Remove a name from `sys.modules` of which no version is left."""
        if self._any_version(name) is None:
            sys.modules.pop(name, None)

    def filename_of(self, source: Source) -> str:
        """The file's path, in a spelling that no other living version has.

        Tracebacks and `inspect` find the lines of a version by its spelling, and whoever opens
        the path finds the file: the second spelling of `shop/cart.py` is `shop/./cart.py`.
        """
        return self._files.free(source.path)

    def show_source(self, loader: VersionLoader) -> None:
        """Let tracebacks show the lines of a version, whatever is on the disk by then."""
        self._files.hold(loader.path, loader)

    def _resolve(self, name: str, frame: FrameType | None) -> ModuleType | None:
        of_caller = self.set_of(frame) if len(self._sets) > 1 else self.current
        if of_caller is None:
            return self._any_version(name)
        if name in of_caller.modules:
            return of_caller.modules[name]
        if name in self.left or of_caller.source_of(name) is None:
            return self._any_version(name)
        return of_caller.load(name)  # Nothing of this version has needed it so far.

    def _any_version(self, name: str) -> ModuleType | None:
        if self.current is not None and name in self.current.modules:
            return self.current.modules[name]
        if name in self.left:
            return self.left[name]
        # The first set, while it is being loaded, or a module that a failed version imported.
        return next((each.modules[name] for each in self._sets if name in each.modules), None)

    def _import_statement(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - likewise
        locals: Mapping[str, Any] | None = None,  # noqa: A002 - likewise
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        loader = globals.get("__loader__") if globals else None
        if type(loader) is not VersionLoader or (not level and name in loader.modules.foreign):
            return self._import(name, globals, locals, fromlist or (), level)
        absolute = name
        if level:
            absolute = importlib.util.resolve_name("." * level + name, loader.source.package)
        top = absolute.partition(".")[0]
        if not loader.modules.owns(top):
            if top in sys.modules:
                loader.modules.foreign.add(absolute)
            return self._import(name, globals, locals, fromlist or (), level)
        if fromlist:
            return loader.modules.import_from(absolute, fromlist)
        loader.modules.load(absolute)
        return loader.modules.load(top)


__all__ = ["ModuleSet", "ModuleVersions"]
