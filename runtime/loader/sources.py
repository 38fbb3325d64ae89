"""Reads the project's modules from their files, each file once, and the imports between them."""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from runtime.loader.current_module import is_current_module
from runtime.loader.imports import imported_names
from runtime.loader.ownership import HOST, is_installed

_DIGITS = 12
_STATEMENTS = ".sql"
"""SQL files beside a module count as code too."""
_SHIPPED_FUNCTIONS = str(Path(__file__).parents[2] / "functions")


@dataclass(frozen=True, slots=True)
class Source:
    """One module as it is on the disk.

    Attributes:
        name: the module's dotted name.
        path: the module's file; empty for a package without an `__init__.py`.
        data: the bytes of the file.
        folders: the folders of its submodules; empty unless it is a package.
        digest: of `data`, and of the SQL files in the module's folder if it is in a package.
        is_project: False for a module that is installed, which a reload leaves alone.
    """

    name: str
    path: str
    data: bytes
    folders: tuple[str, ...]
    digest: bytes
    is_project: bool

    @property
    def package(self) -> str:
        """The package that the module's relative imports start from."""
        return self.name if self.folders else self.name.rpartition(".")[0]


class Sources:
    """The project modules that some modules need, as they are on the disk at one time.

    Nothing is imported. A module belongs to the project when it is in the top-level package of a
    handler, or when it is neither installed, nor Python's, nor the host's.

    Attributes:
        modules: the modules, by name.
        found_later: importers and the modules that they import, though the text does not say so.
    """

    def __init__(self) -> None:
        invalidate_caches()  # Finders list a folder again only when its time has changed.
        self.modules: dict[str, Source] = {}
        self.found_later: set[tuple[str, str]] = set()
        self._tops: set[str] = set()
        self._needs: dict[str, set[str]] = {}
        self._located: dict[str, Source | None] = {}
        self._statements: dict[Path, bytes] = {}

    def add_handler(self, name: str) -> None:
        """Add a handler's module and all project modules that it needs.

        If the module is a package, all modules in its folder are needed.
        """
        self._tops.add(name.partition(".")[0])
        self._add([name])
        source = self.modules.get(name)
        for folder in _own_folders(source) if source else ():
            below = list(_names_below(name, Path(folder)))
            self._add(below)
            self._needs[name].update(each for each in below if each in self.modules)

    def add_need(self, importer: str, name: str) -> None:
        """Add a module that another one has imported by a name that its text does not have."""
        if importer not in self._needs:
            return
        self._add([name])
        if name in self.modules and name != importer:
            self._needs[importer].add(name)
            self.found_later.add((importer, name))

    def find(self, name: str) -> Source | None:
        """The module with this name, though nothing may import it; None if it is not the project's.

        Installed modules are not found.
        """
        found = self._locate(name)
        return found if found is not None and found.is_project else None

    def needs(self, name: str) -> frozenset[str]:
        """The project modules that a module imports itself, with their parent packages."""
        return frozenset(self._needs.get(name, ()))

    def closure(self, name: str) -> set[str]:
        """A module and all modules that it needs, directly or not."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current in self.modules and current not in found:
                found.add(current)
                waiting += self._needs[current]
        return found

    def version(self, name: str, more: Iterable[bytes] = ()) -> str:
        """Twelve hex digits of a hash of a module and all modules that it needs.

        Only names and contents count, so equal code has the same version on every machine.

        Args:
            name: the module.
            more: digests that count too.
        """
        files = [self.modules[each] for each in sorted(self.closure(name))]
        digest = hashlib.sha256()
        for source in files:
            if source.path:
                digest.update(f"{source.name}\n".encode() + source.digest)
        for each in more:
            digest.update(each)
        return digest.hexdigest()[:_DIGITS] if any(source.path for source in files) else ""

    def _add(self, names: Iterable[str]) -> None:
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in self._needs:
                continue
            source = self._locate(name)
            if source is None:
                continue
            self.modules[name] = source
            wanted = [*_parents(name), *imported_names(source.data, source.package)]
            wanted += [parent for each in wanted for parent in _parents(each)]
            self._needs[name] = {each for each in wanted if self._locate(each)} - {name}
            waiting += self._needs[name]

    def _locate(self, name: str) -> Source | None:
        if name not in self._located:
            self._located[name] = None  # A guard: finding a module may need its parents.
            self._located[name] = self._read(name)
        return self._located[name]

    def _read(self, name: str) -> Source | None:
        top, _, _ = name.partition(".")
        spec = self._spec(name)
        if spec is None or (top == HOST and top not in self._tops):
            return None
        folders = tuple(spec.submodule_search_locations or ())
        if name == "functions" and _SHIPPED_FUNCTIONS not in folders:
            folders = (*folders, _SHIPPED_FUNCTIONS)
        if spec.origin is None:
            return Source(name, "", b"", folders, b"", is_project=True) if folders else None
        path = Path(spec.origin)
        is_project = top != HOST and not is_installed(path)
        if path.suffix != ".py" or not (is_project or top in self._tops):
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest = hashlib.sha256(data)
        if folders or "." in name:
            digest.update(self._statements_in(path.parent))
        return Source(name, str(path), data, folders, digest.digest(), is_project)

    def _statements_in(self, folder: Path) -> bytes:
        """A digest of the SQL files of a package's folder; empty without any."""
        if folder not in self._statements:
            digest = hashlib.sha256()
            files = sorted(folder.glob(f"*{_STATEMENTS}"))
            for file in files:
                with suppress(OSError):
                    content = file.read_bytes()
                    digest.update(f"{file.name}\n{len(content)}\n".encode() + content)
            self._statements[folder] = digest.digest() if files else b""
        return self._statements[folder]

    def _spec(self, name: str) -> ModuleSpec | None:
        module = sys.modules.get(name)
        if module is not None and not is_current_module(module):
            return _spec_of(module)
        parent = name.rpartition(".")[0]
        around = self._locate(parent) if parent else None
        if parent and around is None:
            return None
        try:
            return PathFinder.find_spec(name, list(around.folders) if around else None)
        except (KeyError, ValueError):
            # A package without __init__.py whose parent is not imported: Python reads the path of
            # the parent when it is asked for the package's path.
            return _namespace(name, around.folders if around else ())


def _spec_of(module: ModuleType) -> ModuleSpec | None:
    """A spec with the file and folders that an imported module has."""
    file = getattr(module, "__file__", None)
    folders = getattr(module, "__path__", None)
    if file is None and folders is None:
        return None
    spec = ModuleSpec(module.__name__, None, origin=file, is_package=folders is not None)
    spec.submodule_search_locations = list(folders) if folders is not None else None
    return spec


def _namespace(name: str, around: Iterable[str]) -> ModuleSpec | None:
    last = name.rpartition(".")[2]
    folders = [str(Path(folder) / last) for folder in around if (Path(folder) / last).is_dir()]
    if not folders:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = folders
    return spec


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _own_folders(source: Source) -> list[str]:
    """A package's own folders, without folders added to its path, such as the shipped functions."""
    if not source.path:
        return list(source.folders)
    return [str(Path(source.path).parent)] if Path(source.path).stem == "__init__" else []


def _names_below(package: str, folder: Path) -> Iterator[str]:
    for file in folder.rglob("*.py"):
        parts = file.relative_to(folder).with_suffix("").parts
        yield ".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])


__all__ = ["Source", "Sources"]
