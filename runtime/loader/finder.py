"""Finds project modules for whoever does not use an import statement of a project module."""

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Protocol

from runtime.loader.sources import Source


class _Set(Protocol):
    def source_of(self, name: str) -> Source | None: ...

    def load(self, name: str) -> ModuleType: ...


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of the set whose code asks.

    Args:
        set_of: the set of the innermost project code on a stack.
        stand_in: puts what stands for a module into `sys.modules`.
    """

    def __init__(
        self,
        set_of: Callable[[FrameType | None], _Set | None],
        stand_in: Callable[[str], ModuleType],
    ) -> None:
        self._set_of = set_of
        self._stand_in = stand_in

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """A spec that loads the module into the set; None for a module of somebody else."""
        modules = self._set_of(sys._getframe(1))  # noqa: SLF001 - Python's own way
        source = modules.source_of(fullname) if modules is not None else None
        if modules is None or source is None:
            return None
        loader = _IntoSet(modules, self._stand_in)
        spec = ModuleSpec(fullname, loader, origin=source.path or None)
        spec.has_location = bool(source.path)
        # For whoever wants to know where a module is, without importing it.
        spec.submodule_search_locations = list(source.folders) if source.folders else None
        return spec


class _IntoSet(importlib.abc.Loader):
    """Loads a module into a set, and puts what stands for it into `sys.modules`."""

    def __init__(self, modules: _Set, stand_in: Callable[[str], ModuleType]) -> None:
        self._modules = modules
        self._stand_in = stand_in

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        sys.modules.pop(name, None)
        self._modules.load(name)
        self._stand_in(name)


__all__ = ["Finder"]
