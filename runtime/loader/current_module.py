"""Stands in `sys.modules` for a project module of which several versions may live.

The import statements of project modules get the module of their own version, see `versions`. What
else asks `sys.modules` meets a `CurrentModule`: pickle, dataclasses, pydantic, typing, inspect,
importlib, and `sys.modules[__name__]`. It passes every access to the version whose code is on the
caller's stack, and to the current version if there is none. So a pickle of an old version's object
finds the old class as long as the old code runs, and a name is never hidden from other modules.
"""

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

Resolve = Callable[[str, FrameType | None], ModuleType | None]


class CurrentModule(ModuleType):
    """A module that passes every access to one of its versions.

    Args:
        name: the module's dotted name.
        resolve: finds the version for a frame and its callers; None when there is none any more.
    """

    def __init__(self, name: str, resolve: Resolve) -> None:
        super().__init__(name)
        vars_of = object.__getattribute__(self, "__dict__")
        vars_of["_resolve"] = resolve

    def __getattribute__(self, attribute: str) -> Any:  # noqa: ANN401 - a module's own
        target = _target(self, sys._getframe(1))  # noqa: SLF001 - Python's own way
        if target is None:
            if attribute == "__dict__":
                return {}
            own = object.__getattribute__(self, "__dict__")
            raise AttributeError(f"module {own['__name__']!r} has no version that is loaded")
        return getattr(target, attribute)

    def __setattr__(self, attribute: str, value: object) -> None:
        target = _target(self, sys._getframe(1))  # noqa: SLF001 - Python's own way
        if target is None or (is_current_module(value) and hasattr(target, attribute)):
            # Python's own import sets a submodule on its package; the right version is there.
            return
        setattr(target, attribute, value)

    def __delattr__(self, attribute: str) -> None:
        target = _target(self, sys._getframe(1))  # noqa: SLF001 - Python's own way
        if target is not None:
            delattr(target, attribute)

    def __dir__(self) -> list[str]:
        target = _target(self, sys._getframe(1))  # noqa: SLF001 - Python's own way
        return [] if target is None else dir(target)

    def __repr__(self) -> str:
        return repr(_target(self, sys._getframe(1)))  # noqa: SLF001 - Python's own way


def is_current_module(module: object) -> bool:
    """Whether `module` only stands for the versions of a project module."""
    return type(module) is CurrentModule


def _target(module: CurrentModule, frame: FrameType | None) -> ModuleType | None:
    own = object.__getattribute__(module, "__dict__")
    found: ModuleType | None = own["_resolve"](own["__name__"], frame)
    return found


__all__ = ["CurrentModule", "is_current_module"]
