"""Importing a function's module, and saying precisely why it cannot be imported."""

import hashlib
import importlib
import inspect
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from runtime.manifest.translation import suggest

_VERSION_DIGITS = 12
_ERROR_LENGTH = 300
_INSTALLED = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})


class LoadError(Exception):
    """A module or a handler cannot be used: `wrong` and `remedy` as in a Problem."""

    def __init__(self, wrong: str, remedy: str) -> None:
        self.wrong = wrong
        self.remedy = remedy
        super().__init__(wrong)


def make_importable(folder: Path) -> None:
    """Let modules in `folder` be imported by their names; harmless when they can be already."""
    place = str(folder)
    if place not in sys.path:
        sys.path.insert(0, place)


def import_module(name: str) -> ModuleType:
    """The module, under its own dotted name.

    Raises:
        LoadError: there is none, or importing it raised an exception.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise LoadError(
                f"there is no module {error.name}", _suggest_module(error.name)
            ) from None
        raise _explain_import(name, error) from error
    except (Exception, SystemExit) as error:
        raise _explain_import(name, error) from error


def find_attribute(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - whatever stands there
    """A module's attribute.

    Raises:
        LoadError: it has none of that name.
    """
    try:
        return getattr(module, name)
    except AttributeError:
        known = [
            other
            for other, value in vars(module).items()
            if inspect.isroutine(value) and not other.startswith("_")
        ]
        raise LoadError(f"module {module.__name__} has no {name}", suggest(name, known)) from None


def find_hook(module: ModuleType, name: str) -> Any:  # noqa: ANN401 - a callable or None
    """The module's `start` or `stop`, or None.

    Raises:
        LoadError: it cannot be called with one context.
    """
    hook = getattr(module, name, None)
    if hook is None or inspect.ismodule(hook):
        return None
    try:
        inspect.signature(hook).bind(None)
    except (TypeError, ValueError):
        raise LoadError(
            f"{module.__name__}.{name} cannot be called with a context",
            f"write `async def {name}(ctx: Context)`, or rename it",
        ) from None
    return hook


def hash_source(module: ModuleType) -> str:
    """Twelve hex digits over the module's source, a package's with all of its Python files."""
    if not module.__file__:
        return ""
    file = Path(module.__file__)
    files: Iterable[Path] = [file]
    if hasattr(module, "__path__"):
        files = sorted(file.parent.rglob("*.py"))
    digest = hashlib.sha256()
    for source in files:
        digest.update(source.relative_to(file.parent).as_posix().encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:_VERSION_DIGITS]


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
    return LoadError(
        f"importing {name} failed at {_blame(error)}: {kind}: {text}", "correct the module"
    )


def _blame(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return _shorten(error.filename, error.lineno or 1)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and frame.filename not in {__file__, importlib.__file__}
    ]
    own = [frame for frame in frames if not frame.filename.startswith(_INSTALLED)]
    blamed = (own or frames)[-1:]
    return _shorten(blamed[0].filename, blamed[0].lineno or 1) if blamed else "an unknown line"


def _shorten(filename: str, line: int) -> str:
    path = Path(filename)
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}"
