"""A project in a folder of a test's own, whose functions are loaded and loaded again."""

import gc
import importlib
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

from runtime.loader import Candidate, Function, Project
from runtime.manifest.model import Manifest

IMPORTS = "from runtime import Batch, Context, Event\nfrom pydantic import BaseModel\n"


class ReloadedProject:
    """Loads functions from the current folder, in versions beside each other."""

    def __init__(self, *, from_source: bool = True) -> None:
        self.project = Project(from_source=from_source)
        self.functions: dict[str, Function] = {}
        self.errors: Mapping[str, Any] = {}

    def load(self, **handlers: str) -> None:
        """Load these functions for the first time, each by `module:attribute`."""
        self._handlers = handlers
        self.functions = self.project.load(self._manifest())

    def reload(self, **handlers: str) -> Candidate:
        """Load what has changed; with handlers, those are added or replaced."""
        self._handlers |= handlers
        candidate = self.project.prepare(self._manifest())
        self.project.commit(candidate)
        self.functions, self.errors = candidate.functions, candidate.errors
        return candidate

    def call(self, name: str, *arguments: object) -> Any:
        """Call a plain handler."""
        return self.functions[name].handler(*arguments)

    def _manifest(self) -> Manifest:
        functions = {
            name: {"handler": handler, "endpoint": {"subject": name}}
            for name, handler in self._handlers.items()
        }
        return Manifest.model_validate({"functions": functions})


def write(file: str, source: str) -> Path:
    """Write a module, with a handler `handle` that returns what `answer()` does."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(source))
    return path


def handler(body: str = "return None", *, before: str = "") -> str:
    """The source of a module with a plain handler, callable as `handle(None, None)`."""
    return (
        f"from runtime import Context, Event\n{dedent(before)}\n"
        f"def handle(event: Event[bytes], ctx: Context) -> object:\n    {body}\n"
    )


def collect() -> None:
    """Free what only reference cycles and the caches of `typing` hold."""
    cleanups: list[Callable[[], None]] = getattr(typing, "_cleanups", [])
    for clean in cleanups:
        clean()
    gc.collect()


def forget_modules_of(folder: Path) -> None:
    """Remove what a test imported from its folder."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "") or "").startswith(str(folder)):
            del sys.modules[name]
    importlib.invalidate_caches()
