"""Reloads every worker process of a host, and makes one report of theirs."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

from runtime.deployments.function_change import Action, FunctionChange
from runtime.loader import Function, LoadFailure
from runtime.manifest import Manifest
from runtime.process.workers import WorkerSpec, WorkerSupervisor, divide

READY_MARGIN_S = 10.0
"""How long a new process may take beyond its function's `start_timeout`."""


class WorkerReloads:
    """Takes the place of the host in a reload by the supervisor, which runs no function itself.

    Every worker reads the files itself, so a worker that starts meanwhile misses nothing.

    Args:
        supervisor: of the workers.
        workers: number of processes for the functions that are not isolated.
        manifest: the manifest that the workers were started with.

    Attributes:
        errors: by function, or by another name, why the last good version runs on.
    """

    def __init__(self, supervisor: WorkerSupervisor, workers: int, manifest: Manifest) -> None:
        self.errors: dict[str, str] = {}
        self._supervisor = supervisor
        self._workers = workers
        self._names = set(manifest.functions)
        self._refused: dict[str, str] = {}

    async def apply(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        errors: Mapping[str, LoadFailure],
    ) -> list[FunctionChange]:
        """Let the workers follow; return their changes, one for each function."""
        isolated = {name: spec.isolate for name, spec in manifest.functions.items()}
        before, self._names = self._names, set(functions)
        added = await self._supervisor.follow(divide(isolated, self._workers))
        starting = [asyncio.create_task(self._report_new(each, functions)) for each in added]
        reports = await self._supervisor.reload()
        moved = await asyncio.gather(*starting)
        moved_names = {change.name for change in moved}
        reported = [
            change
            for changes in reports.values()
            for change in changes
            if change.name not in moved_names
        ]
        merged = merge([*reported, *moved], before)
        self._note(merged, functions, errors)
        return merged

    async def tell(self) -> list[FunctionChange]:
        """Let the workers reload although the supervisor has seen no change."""
        reports = await self._supervisor.reload()
        merged = merge([each for changes in reports.values() for each in changes], self._names)
        for change in merged:
            self.errors.pop(change.name, None)
            if change.error is not None:
                self.errors[change.name] = str(change.error)
        return merged

    async def check(self) -> str | None:
        """Probe: the last reload of every function succeeded."""
        return "; ".join(f"{name}: {error}" for name, error in self.errors.items()) or None

    async def _report_new(
        self, worker: WorkerSpec, functions: Mapping[str, Function]
    ) -> FunctionChange:
        """What became of a function that has a process of its own now."""
        function = functions[worker.function or ""]
        name, version = function.name, function.code_version
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        error: LoadFailure | None = None
        try:
            async with asyncio.timeout(function.spec.start_timeout + READY_MARGIN_S):
                await self._supervisor.wait_until_one_is_ready(worker.name)
        except TimeoutError:
            wrong, remedy = "its process does not get ready", "see what it said in the log"
            error = LoadFailure(f"function {name}", wrong, remedy)
        elapsed_ms = round((loop.time() - began_s) * 1000, 1)
        action: Action = "failed" if error else "started"
        return FunctionChange(name, action, "", version, elapsed_ms, error)

    def _note(
        self,
        changes: Iterable[FunctionChange],
        functions: Mapping[str, Function],
        errors: Mapping[str, LoadFailure],
    ) -> None:
        for change in changes:
            self._refused.pop(change.name, None)
            if change.error is not None and change.name not in errors:
                self._refused[change.name] = str(change.error)
        self._refused = {name: error for name, error in self._refused.items() if name in functions}
        self.errors = {**self._refused, **{name: str(each) for name, each in errors.items()}}


def merge(changes: Iterable[FunctionChange], before: Iterable[str]) -> list[FunctionChange]:
    """One change for each function that changed in any worker: its failure, or the slowest.

    Args:
        changes: of all workers.
        before: the functions that ran before; one that only moved to another process was `rebound`.
    """
    known = set(before)
    merged: dict[str, FunctionChange] = {}
    for change in changes:
        found = merged.get(change.name)
        if found is None or _weight(change) > _weight(found):
            merged[change.name] = change
    return [
        replace(change, action="rebound")
        if change.action == "started" and change.name in known
        else change
        for change in merged.values()
    ]


def _weight(change: FunctionChange) -> tuple[bool, float]:
    return change.error is not None, change.elapsed_ms


__all__ = ["WorkerReloads", "merge"]
