"""Imports a function's module, and explains precisely why it cannot be imported."""

import importlib
import inspect
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.manifest.translation import suggest

_ERROR_LENGTH = 300
_ARGUMENTS = {"hand_over": ("the old version's state", "old_state: State")}
_STDLIB = sysconfig.get_path("stdlib")
_SITES = tuple({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})
_INSTALLED = (_STDLIB, *_SITES)
_LOADER = str(Path(__file__).parent) + os.sep


class LoadError(Exception):
    """A module or a handler cannot be used: `wrong` and `remedy` as in a Problem.

    Attributes:
        place: file and line of the mistake, the file as the code object names it.
        short: what is wrong, without its place.
    """

    def __init__(
        self,
        wrong: str,
        remedy: str,
        place: tuple[str, int] | None = None,
        *,
        short: str = "",
    ) -> None:
        self.wrong = wrong
        self.remedy = remedy
        self.place = place
        self.short = short or wrong
        super().__init__(wrong)


def make_importable(folder: Path) -> None:
    """Let modules in `folder` be imported by their names; may be called again.

    The folder comes before installed packages and after Python's own modules: a `queue.py` in it
    must not replace the `queue` that libraries import.
    """
    place = str(folder)
    if place not in sys.path:
        after = [at for at, entry in enumerate(sys.path, 1) if _is_python_itself(entry)]
        sys.path.insert(max(after, default=0), place)


def import_module(
    name: str, do_import: Callable[[str], ModuleType] = importlib.import_module
) -> ModuleType:
    """Import the module under its own dotted name.

    Args:
        name: the dotted name.
        do_import: imports it; Python's own import unless given.

    Raises:
        LoadError: the module does not exist, another has its name, or its import raised.
    """
    try:
        module = do_import(name)
    except ModuleNotFoundError as error:
        top = name.partition(".")[0]
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            _refuse_hidden(top)
            raise LoadError(
                f"there is no module {error.name}", _suggest_module(error.name)
            ) from None
        raise _explain_import(name, error) from error
    except (Exception, SystemExit) as error:
        raise _explain_import(name, error) from error
    _refuse_hidden(name.partition(".")[0])
    return module


def find_attribute(module: ModuleType, path: str) -> Any:  # noqa: ANN401 - whatever stands there
    """A module's attribute; for `shop.place` the attribute `place` of its attribute `shop`.

    Raises:
        LoadError: the attribute does not exist, or is a method without its object.
    """
    found: Any = module
    around = f"module {module.__name__}"
    for name in path.split("."):
        owner = found
        try:
            found = getattr(owner, name)
        except AttributeError:
            known = [
                other
                for other, value in _members(owner)
                if inspect.isroutine(value) and not other.startswith("_")
            ]
            raise LoadError(f"{around} has no {name}", suggest(name, known)) from None
        if inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, name)):
            raise LoadError(
                f"{path} is a method of a class, and there is no object to call it on",
                f"make one in the module and name its method: `it = {owner.__name__}(…)`,"
                f" `{module.__name__}:it.{name}`",
            )
        around = f"{module.__name__}:{name}"
    return found


def find_hook(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - a callable or None
    """The module's `start`, `stop` or `hand_over`, or None.

    Raises:
        LoadError: the hook cannot be called with one argument.
    """
    hook = getattr(module, name, None)
    if hook is None or inspect.ismodule(hook):
        return None
    try:
        inspect.signature(hook).bind(None)
    except (TypeError, ValueError):
        what, parameter = _ARGUMENTS.get(name, ("a context", "ctx: Context"))
        raise LoadError(
            f"{module.__name__}.{name} cannot be called with {what}",
            f"write `async def {name}({parameter})`, or rename it",
        ) from None
    return hook


def _members(owner: object) -> list[tuple[str, Any]]:
    names = vars(owner) if inspect.ismodule(owner) else dir(owner)
    return [(name, inspect.getattr_static(owner, name, None)) for name in names]


def _is_python_itself(entry: str) -> bool:
    place = Path(entry)
    return (
        bool(entry)
        and (place.is_relative_to(_STDLIB) or place.suffix == ".zip")
        and not any(place.is_relative_to(installed) for installed in _SITES)
    )


def _refuse_hidden(top: str) -> None:
    """Refuse a module of the current folder whose name another module has taken.

    Raises:
        LoadError: names both modules.
    """
    folder = Path.cwd()
    own = [path for path in (folder / f"{top}.py", folder / top / "__init__.py") if path.exists()]
    taken = sys.modules.get(top)
    if not own or taken is None:
        return
    file = getattr(taken, "__file__", None)
    if file is None and hasattr(taken, "__path__"):
        return  # A namespace package, which may include the folder's.
    if file and any(Path(file).samefile(path) for path in own if Path(file).exists()):
        return
    whose = "Python's own" if top in sys.stdlib_module_names else f"the one in {file}"
    raise LoadError(
        f"{top} is {whose}, which hides {own[0].relative_to(folder)}",
        "give yours another name",
    )


def _suggest_module(name: str) -> str:
    package, _, last = name.rpartition(".")
    paths = getattr(sys.modules.get(package), "__path__", None) if package else [str(Path.cwd())]
    siblings = [found.name for found in pkgutil.iter_modules(paths)] if paths is not None else []
    remedy = suggest(last, siblings)
    if package or "did you mean" in remedy:
        return remedy
    return "install it, or start in the folder that holds it"


def _explain_import(name: str, error: BaseException) -> LoadError:
    text = str(error)[:_ERROR_LENGTH]
    kind = type(error).__name__
    place = _blame(error)
    shown = shorten(*place) if place else "an unknown line"
    said = error.msg if isinstance(error, SyntaxError) else text
    return LoadError(
        f"importing {name} failed at {shown}: {kind}: {text}",
        "correct the module",
        place,
        short=f"{kind}: {said[:_ERROR_LENGTH]}",
    )


def _blame(error: BaseException) -> tuple[str, int] | None:
    """File and line of the project's code that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno or 1
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and frame.filename != importlib.__file__
        and not frame.filename.startswith(_LOADER)
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    blamed = (own or frames)[-1:]
    return (blamed[0].filename, blamed[0].lineno or 1) if blamed else None


def shorten(filename: str, line: int) -> str:
    """`file:line`, relative to the current folder if the file is inside."""
    path = Path(filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"
