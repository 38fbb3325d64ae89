"""The next versions of a project's functions, before anything uses them."""

from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import Problem
from runtime.loader.failure import LoadFailure
from runtime.loader.function import Function
from runtime.loader.sources import Sources
from runtime.loader.versions import ModuleSet
from runtime.manifest import Manifest

MANIFESTS = "manifests"
"""The name under which a mistake is shown that is of no function."""


@dataclass(slots=True)
class Candidate:
    """The next versions of the functions; nothing uses them before `Project.commit`.

    Attributes:
        manifest: the manifest that the functions are of.
        functions: all wanted functions; a broken one is the version that runs.
        errors: why functions are broken, by name.
        modules: the new set of modules.
        problems: the errors as problems of the manifest's entries.
        raised: handlers' modules that raised something while they were imported.
    """

    manifest: Manifest
    functions: dict[str, Function]
    errors: dict[str, LoadFailure]
    modules: ModuleSet
    problems: list[Problem] = field(default_factory=list)
    raised: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Again:
    """What is tried again though its content is the same, as it failed in the host.

    Attributes:
        everything: all of it.
        touched: files that were saved; whatever needs one of them.
    """

    everything: bool = False
    touched: frozenset[Path] = frozenset()

    def concerns(self, sources: Sources, module: str) -> bool:
        """Whether a function of this module is tried again."""
        if self.concerns_manifests():
            return True
        needed = {Path(sources.modules[each].path) for each in sources.closure(module)}
        return not needed.isdisjoint(self.touched)

    def concerns_manifests(self) -> bool:
        """Whether what was refused for its manifest is tried again."""
        return self.everything or any(each.suffix in {".yaml", ".yml"} for each in self.touched)


__all__ = ["MANIFESTS", "Again", "Candidate"]
