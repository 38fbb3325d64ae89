"""Loads what has changed in a project, and gives it to the host, which swaps it in."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from runtime.deployments.function_change import FunctionChange
from runtime.errors import ConfigError, Problem
from runtime.loader import Again, Candidate, Function, LoadFailure, Project
from runtime.loader.candidate import MANIFESTS
from runtime.manifest import Manifest
from runtime.reloading.old_versions import OldVersions
from runtime.reloading.watched_places import WatchedPlaces

LOAD_LIMIT_S = 30.0
"""How long the modules may take to be imported. A thread cannot be ended: it is left behind."""
UNSETTLED_S = 1.0
"""How long a mistake is not reported because the files go on changing."""


class Applies(Protocol):
    """What the reloader needs of a host."""

    async def apply(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        errors: Mapping[str, LoadFailure],
    ) -> list[FunctionChange]:
        """Run these functions from now on."""


class Reloader:
    """Reloads the functions of one process.

    Args:
        project: has loaded the running functions.
        read: reads the manifest.
        host: runs the functions.
        manifest: the manifest that runs.
        paths: the files and folders of the manifests.
        part: reduces a manifest to the functions of this process.
    """

    def __init__(
        self,
        project: Project,
        read: Callable[[], Manifest],
        host: Applies,
        manifest: Manifest,
        *,
        paths: Sequence[Path],
        part: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    ) -> None:
        self._project = project
        self._part = part
        self._read = read
        self._host = host
        self._manifest = manifest
        self._paths = [path.absolute() for path in paths]
        self._running = dict(project.functions)
        self._errors: dict[str, LoadFailure] = {}
        self._old = OldVersions()
        self._lock = asyncio.Lock()
        self._is_waiting = False
        self._retries = False
        self._touched: set[Path] = set()
        self._has_refused = False
        self._unsettled_s: float | None = None

    async def reload(
        self,
        *,
        retry: bool = False,
        touched: frozenset[Path] = frozenset(),
        is_settled: Callable[[], Awaitable[bool]] | None = None,
    ) -> list[FunctionChange]:
        """Reload what has changed, and return what became of it; empty when nothing has.

        Calls at the same time run one after another; those that wait for a call that has begun
        are one.

        Args:
            retry: also try again what the host could not start, or JetStream refused.
            touched: files that were saved; what needs them is also tried again.
            is_settled: asked when something is wrong: False means that the files change again by
                now, so that what is wrong may be half of a file, and the reload ends without
                effect.
        """
        self._retries = self._retries or retry
        self._touched |= touched
        if self._is_waiting:
            return []  # The call that waits has not read anything yet.
        self._is_waiting = True
        async with self._lock:
            self._is_waiting = False
            again = Again(self._retries, frozenset(self._touched))
            loaded = await self._load(again, is_settled)
            if loaded is not None or not self._is_waiting:
                self._retries = False
                self._touched.difference_update(again.touched)
        # Outside of the lock: a binding that drains takes as long as its calls.
        return await self._apply(*loaded) if loaded else []

    async def stop(self) -> None:
        """Wait for no old version any more."""
        await self._old.stop()

    def places(self) -> WatchedPlaces:
        """Where the files are that a reload reads."""
        folders, trees = self._project.folders()
        manifests = {path if path.is_dir() else path.parent for path in self._paths}
        files = {path for path in self._paths if not path.is_dir()}
        return WatchedPlaces(
            folders | {folder for each in manifests for folder in (each, each.parent)},
            trees,
            frozenset(files) | self._project.data_files(),
        )

    async def _load(
        self, again: Again, is_settled: Callable[[], Awaitable[bool]] | None
    ) -> tuple[Manifest, Mapping[str, Function], dict[str, LoadFailure]] | None:
        """Load what has changed and make it the wanted version; None when nothing has changed."""
        manifest, wrong = await self._read_manifest()
        candidate, errors = await self._prepare(manifest, again)
        errors = {**errors, **wrong}
        has_new_errors = any(self._errors.get(name) != error for name, error in errors.items())
        if has_new_errors and is_settled is not None and await self._may_be_half(is_settled):
            return None
        self._unsettled_s = None
        before = self._project.functions
        functions = candidate.functions if candidate else before
        is_same = functions.keys() == before.keys() and all(
            before[name] is function for name, function in functions.items()
        )
        is_asked = self._has_refused and again.concerns_manifests()
        if is_same and manifest == self._manifest and errors == self._errors and not is_asked:
            return None
        if candidate is not None:
            self._project.commit(candidate)
        self._manifest, self._errors = manifest, errors
        return manifest, functions, errors

    async def _may_be_half(self, is_settled: Callable[[], Awaitable[bool]]) -> bool:
        """Whether a mistake may be that of a file that is still being written."""
        now_s = asyncio.get_running_loop().time()
        if self._unsettled_s is None:
            self._unsettled_s = now_s
        if now_s - self._unsettled_s > UNSETTLED_S:
            return False  # Files are written all the time, which must not hide the mistake.
        return self._is_waiting or not await is_settled()

    async def _apply(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        errors: Mapping[str, LoadFailure],
    ) -> list[FunctionChange]:
        before = dict(self._running)
        self._has_refused = False
        changes = await self._host.apply(manifest, functions, errors)
        for change in changes:
            name = change.name
            self._has_refused |= change.error is not None and name not in errors
            if change.error is None:
                self._running.pop(name, None)
                self._running |= {name: functions[name]} if name in functions else {}
            elif name not in errors and name in functions:
                self._project.keep(functions[name], self._running.get(name), change.error)
                self._errors[name] = change.error
        self._old.collect(before, self._running)
        return changes

    async def _prepare(
        self, manifest: Manifest, again: Again
    ) -> tuple[Candidate | None, dict[str, LoadFailure]]:
        """Load in a thread, so that a slow import stops nothing; no candidate when it hangs."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Candidate] = loop.create_future()

        def work() -> None:
            result: Candidate | None = None
            failure: BaseException | None = None
            try:
                result = self._project.prepare(self._part(manifest), again)
            except BaseException as raised:  # noqa: BLE001 - raised again on the loop
                failure = raised
            loop.call_soon_threadsafe(_finish, done, result, failure)

        # Not a thread of the executor, for which the process would wait at its end.
        thread = threading.Thread(target=work, name="reload", daemon=True)
        thread.start()
        try:
            candidate = await asyncio.wait_for(done, LOAD_LIMIT_S)
        except TimeoutError:
            return None, self._project.give_up(thread, LOAD_LIMIT_S) or {}
        return candidate, dict(candidate.errors)

    async def _read_manifest(self) -> tuple[Manifest, dict[str, LoadFailure]]:
        """The manifest, or the last good one and what is wrong with the new one."""
        try:
            return await asyncio.to_thread(self._read), {}
        except ConfigError as error:
            of_names: dict[str, list[Problem]] = {}
            for problem in error.problems:
                section, _, rest = problem.field.partition(".")
                name = rest.partition(".")[0].partition("[")[0]
                is_known = section == "functions" and name in self._manifest.functions
                of_names.setdefault(name if is_known else MANIFESTS, []).append(problem)
            wrong = {name: LoadFailure.of(problems) for name, problems in of_names.items()}
            return self._manifest, wrong


def _finish(
    done: "asyncio.Future[Candidate]", result: Candidate | None, failure: BaseException | None
) -> None:
    if done.done():
        return  # It took too long.
    if result is not None:
        done.set_result(result)
    else:
        done.set_exception(failure or RuntimeError("nothing was loaded"))


__all__ = ["LOAD_LIMIT_S", "MANIFESTS", "Reloader"]
