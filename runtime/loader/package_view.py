"""A package that did not change, with submodules of which some did.

The submodules are attributes of their package. Setting a new one on the package itself would give
it to the old versions too, so each set of modules has a view of its own on the package.
"""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any


class PackageView(ModuleType):
    """Passes all but its submodules to the package that was executed."""

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - a module's own
        submodules, package, hidden = _parts_of(self)
        if name in submodules:
            return submodules[name]
        if name == "__dict__":
            kept = {key: value for key, value in vars(package).items() if key not in hidden}
            return {**kept, **submodules}
        if name in hidden:
            raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
        return getattr(package, name)

    def __setattr__(self, name: str, value: object) -> None:
        submodules, package, hidden = _parts_of(self)
        if isinstance(value, ModuleType) and value.__name__ == f"{package.__name__}.{name}":
            submodules[name] = value
        elif name not in hidden:
            setattr(package, name, value)

    def __delattr__(self, name: str) -> None:
        submodules, package, _ = _parts_of(self)
        if name in submodules:
            del submodules[name]
        else:
            delattr(package, name)

    def __dir__(self) -> list[str]:
        return sorted(vars(self))

    def __repr__(self) -> str:
        return repr(_parts_of(self)[1])


def view_of(
    package: ModuleType, submodules: Mapping[str, ModuleType], hidden: Iterable[str]
) -> PackageView:
    """A view of a package.

    Args:
        package: the package, or another view of it.
        submodules: the submodules of this view, by their last names.
        hidden: the last names of submodules that this view does not have yet.
    """
    view = PackageView(package.__name__)
    own = object.__getattribute__(view, "__dict__")
    executed = _parts_of(package)[1] if isinstance(package, PackageView) else package
    own["__parts__"] = (dict(submodules), executed, frozenset(hidden))
    return view


def _parts_of(view: PackageView) -> tuple[dict[str, ModuleType], ModuleType, frozenset[str]]:
    parts: tuple[dict[str, ModuleType], ModuleType, frozenset[str]] = object.__getattribute__(
        view, "__dict__"
    )["__parts__"]
    return parts


__all__ = ["PackageView", "view_of"]
