"""Finds names in a user's folder that collide with the packages `runtime` and `functions`.

`functions` is a namespace package, so a user's folder of that name and the shipped one are one
package: `functions.hello` may be the user's and `functions.http_gateway` the shipped one.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from runtime.errors import Problem
from runtime.loader.module import LoadError, import_module

_DISTRIBUTION = Path(__file__).parents[2]
_RUNTIME = _DISTRIBUTION / "runtime"
_FUNCTIONS = _DISTRIBUTION / "functions"
_MANIFESTS = _RUNTIME / "shipped_manifests"


def find_collisions(folder: Path, modules: Mapping[str, str]) -> list[Problem]:
    """Find modules of `folder` that hide a package of this distribution, or the reverse.

    Args:
        folder: the folder of the user's modules.
        modules: the dotted names to be imported, each with the file that names it.
    """
    return [*_find_runtime(folder, modules), *_find_hidden(folder, modules)]


def join_functions(modules: Collection[str]) -> list[Problem]:
    """Make the shipped functions importable beside a user's own `functions`, of either kind.

    Python joins namespace packages by itself. For a user's `functions/__init__.py` or
    `functions.py` the shipped folder is appended to the package's path.

    Returns:
        One problem when the user's `functions` cannot be imported, however many functions it has.
    """
    if not any(_root(name) == "functions" for name in modules):
        return []
    try:
        package = import_module("functions")
    except LoadError as failure:
        return [Problem("functions", "", failure.wrong, failure.remedy)]
    places = list(getattr(package, "__path__", ()))
    if str(_FUNCTIONS) not in places:
        package.__path__ = [*places, str(_FUNCTIONS)]
    return []


def _find_runtime(folder: Path, modules: Collection[str]) -> Iterator[Problem]:
    is_wanted = any(_root(name) == "runtime" for name in modules)
    for path, shown in ((folder / "runtime.py", "runtime.py"), (folder / "runtime", "runtime/")):
        if not path.exists() or _is_same(path, _RUNTIME):
            continue
        # A folder without `__init__.py` is not a regular package, and may contain anything.
        if is_wanted or path.is_file() or (path / "__init__.py").is_file():
            wrong = "has the name of the package that serves functions, so one would hide the other"
            yield Problem(shown, "", wrong, "give it another name, such as my_functions")


def _find_hidden(folder: Path, modules: Mapping[str, str]) -> Iterator[Problem]:
    theirs = folder / "functions"
    if not theirs.is_dir() or _is_same(theirs, _FUNCTIONS):
        return
    own, shipped = _modules_in(theirs), _modules_in(_FUNCTIONS)
    wanted = {
        name.split(".")[1]
        for name, file in modules.items()
        if name.startswith("functions.") and (name.split(".")[1] not in own or _is_shipped(file))
    }
    if not wanted & shipped:
        return  # No shipped function runs, so the shipped ones may be hidden.
    for name in sorted(own & shipped):
        wrong = f"hides the shipped functions.{name}, which shipped functions need"
        yield Problem(f"functions/{name}", "", wrong, "give it another name")


def _is_shipped(file: str) -> bool:
    return Path(file).is_relative_to(_MANIFESTS)


def _root(module: str) -> str:
    return module.partition(".")[0]


def _modules_in(folder: Path) -> set[str]:
    return {
        path.stem
        for path in folder.iterdir()
        if (path.suffix == ".py" or path.is_dir()) and path.stem.isidentifier()
    } - {"__init__", "__pycache__"}


def _is_same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve()
