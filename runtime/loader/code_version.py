"""Version of a function's code: a hash of every project file that the handler needs."""

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_DIGITS = 12
_STATEMENTS = ".sql"
"""SQL files beside a module count as code too."""
_HOST = "runtime"
_INSTALLATIONS = frozenset({"site-packages", "dist-packages"})


def code_version(module: ModuleType) -> str:
    """Twelve hex digits of a hash of the module and all project modules that it imports.

    The imports are read from the sources, imports inside of functions included. The `.sql` files of
    the packages count too; of an imported package all files count. A module belongs to the project
    when it is in the handler's top-level package, or when it is neither installed, nor Python's,
    nor the host's. Only names and contents count, so equal code has the same version on every
    machine.
    """
    files = _ProjectFiles(module.__name__.partition(".")[0])
    files.add(module.__name__)
    for folder in _folders(module):
        files.add_folder(module.__name__, folder)
    digest = hashlib.sha256()
    for name, content in sorted(files.contents.items()):
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:_DIGITS] if files.contents else ""


def _folders(module: ModuleType) -> list[Path]:
    """A package's own folders, without folders added to its path, such as the shipped functions."""
    file = getattr(module, "__file__", None)
    if file is None:
        return [Path(folder) for folder in getattr(module, "__path__", ())]
    return [Path(file).parent] if Path(file).stem == "__init__" else []


class _ProjectFiles:
    """The project files that a module needs.

    Args:
        top: the handler's top-level package, which belongs to the project wherever it is.

    Attributes:
        contents: contents by a name that is independent of the project's location.
    """

    def __init__(self, top: str) -> None:
        self.contents: dict[str, bytes] = {}
        self._top = top
        self._looked_at: set[str] = set()

    def add(self, name: str) -> None:
        """Add a module, its parent packages, and what they import; nothing if it is missing."""
        waiting = [name]
        while waiting:
            current = waiting.pop()
            parent = current.rpartition(".")[0]
            if current in self._looked_at or parent == current:
                continue
            self._looked_at.add(current)
            if parent:
                waiting.append(parent)
            file = _find_file(current)
            if file is None or not self._is_own(current, file):
                continue
            source = self.contents[current] = file.read_bytes()
            is_package = file.stem == "__init__"
            package = current if is_package else parent
            if package:
                self._add_statements(package, file.parent)
            waiting += _imported(source, package)

    def add_folder(self, package: str, folder: Path) -> None:
        """Add every module below a package's folder."""
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            self.add(".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)]))

    def _add_statements(self, package: str, folder: Path) -> None:
        for file in folder.glob(f"*{_STATEMENTS}"):
            self.contents[f"{package}/{file.name}"] = file.read_bytes()

    def _is_own(self, name: str, file: Path) -> bool:
        top = name.partition(".")[0]
        return top == self._top or (top != _HOST and not _is_installed(file))


def _find_file(name: str) -> Path | None:
    """The source file of a module, found without importing the module or its packages."""
    if module := sys.modules.get(name):
        file = getattr(module, "__file__", None)
        return Path(file) if file and file.endswith(".py") else None
    parent = name.rpartition(".")[0]
    places = _places(parent) if parent else None
    if parent and not places:
        return None
    spec = _find_spec(name, places)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _places(package: str) -> Sequence[str]:
    """The folders of a package's modules."""
    if package in sys.modules:
        return list(getattr(sys.modules[package], "__path__", ()))
    parent = package.rpartition(".")[0]
    around = _places(parent) if parent else None
    spec = _find_spec(package, around)
    if spec is not None:
        return list(spec.submodule_search_locations or ())
    inner = [Path(place) / package.rpartition(".")[2] for place in around or ()]
    return [str(folder) for folder in inner if folder.is_dir()]


def _find_spec(name: str, places: Sequence[str] | None) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, places)
    except KeyError:
        # A namespace package whose parent is not imported: Python reads the path of the parent.
        return None


@functools.lru_cache(maxsize=4096)
def _imported(source: bytes, package: str) -> tuple[str, ...]:
    """The dotted names that a source may import; some may not be modules."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    return tuple(dict.fromkeys(_names(tree, package)))


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                around = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*around, *([origin] if origin else [])])
            if origin:
                yield origin
                yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")


def _is_installed(file: Path) -> bool:
    # By the folder's name too: a `.pth` file or PYTHONPATH may add another environment's packages.
    return not _INSTALLATIONS.isdisjoint(file.parts) or any(
        file.is_relative_to(place) for place in _python_itself()
    )


@functools.cache
def _python_itself() -> tuple[Path, ...]:
    """The folders of Python's own modules, and of this environment's packages."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(place) for place in sorted({sysconfig.get_path(kind) for kind in kinds}))
