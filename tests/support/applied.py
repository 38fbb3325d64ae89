"""Takes what a reloader applies, in place of a host: each version runs at once, or is refused."""

from collections.abc import Mapping

from runtime.deployments.function_change import FunctionChange
from runtime.loader import Function, LoadFailure
from runtime.manifest import Manifest


class AppliedVersions:
    """Keeps the applied functions and errors.

    Attributes:
        refuses: functions whose `start` fails.
    """

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {}
        self.errors: Mapping[str, LoadFailure] = {}
        self.refuses: dict[str, LoadFailure] = {}
        self.calls = 0

    async def apply(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        errors: Mapping[str, LoadFailure],
    ) -> list[FunctionChange]:
        self.calls += 1
        self.errors = errors
        changes = []
        for name, function in functions.items():
            before = self.functions.get(name)
            if before is function:
                continue
            old, new = before.code_version if before else "", function.code_version
            if name in self.refuses:
                failure = self.refuses[name]
                changes.append(FunctionChange(name, "failed", old, old, 0.0, failure))
            else:
                self.functions[name] = function
                changes.append(FunctionChange(name, "swapped", old, new, 0.0))
        return changes
