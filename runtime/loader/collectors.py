"""Lets a new version of a module register its Prometheus metrics in place of the old ones.

A module's `Counter("orders", …)` is registered in a registry of the process, which refuses a second
one of that name. So before a module is executed again, what it registered is taken out. A counter
begins at zero again, as after a restart, which `rate()` takes into account.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any


class ModuleCollectors:
    """The collectors that each project module has in the default registry."""

    def __init__(self) -> None:
        self._of: dict[str, list[Any]] = {}

    def adopt(self, modules: Mapping[str, ModuleType]) -> None:
        """Find what modules have registered that Python imported."""
        registered = _registered()
        for name, module in modules.items():
            self._of[name] = [value for value in vars(module).values() if _is_in(value, registered)]

    @contextmanager
    def replaced(self, name: str) -> Iterator[None]:
        """Take out what a module registered; put it back when its new version raises."""
        old = self._of.pop(name, [])
        for collector in old:
            _unregister(collector)
        before = _registered()
        try:
            yield
        except BaseException:
            for collector in self._new(before):
                _unregister(collector)
            for collector in old:
                _register(collector)
            self._of[name] = old
            raise
        self._of[name] = self._new(before)

    def _new(self, before: Mapping[Any, Any]) -> list[Any]:
        """What was registered since, but not by another module that was imported meanwhile."""
        others = {id(collector) for each in self._of.values() for collector in each}
        return [each for each in _registered() if each not in before and id(each) not in others]


def _registry() -> Any:  # noqa: ANN401 - a library that may not be loaded
    library = sys.modules.get("prometheus_client")
    return getattr(library, "REGISTRY", None)


def _registered() -> dict[Any, Any]:
    # There is no public way to list them.
    return dict(getattr(_registry(), "_collector_to_names", {}))


def _is_in(value: object, registered: Mapping[Any, Any]) -> bool:
    return any(value is each for each in registered)


def _unregister(collector: Any) -> None:  # noqa: ANN401 - a collector
    with suppress(KeyError, AttributeError):
        _registry().unregister(collector)


def _register(collector: Any) -> None:  # noqa: ANN401 - a collector
    with suppress(ValueError, AttributeError):
        _registry().register(collector)


__all__ = ["ModuleCollectors"]
