"""Lets the functions of a running process follow another manifest and other versions."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from runtime.deployments.deployment import Deployment, Superseded
from runtime.deployments.function_change import STREAM, Action, FunctionChange
from runtime.deployments.how_to_apply import Keep, Rebind, Restart, Swap, how_to_apply
from runtime.deployments.manifest_changes import ManifestChanges
from runtime.loader import Function, LoadFailure
from runtime.loader.candidate import MANIFESTS
from runtime.manifest import Manifest
from runtime.observe.logs import get_logger
from runtime.reloading.reload_failure import failure_of
from runtime.wiring import Wiring

log = get_logger("runtime.reload")


class DeploymentChanges:
    """Applies reloads to the deployments of a process.

    Functions change concurrently and each on its own: one that fails or drains for long delays no
    other. Streams are compared and changed by one reload at a time.

    Args:
        manifest: what the process serves.
        deployments: the functions of the process, by name; changed by `apply`.
        wiring: the services that all functions share.
        followers: called with the functions that run, after each change of them.

    Attributes:
        errors: by a name that is no function's, why what it names was not loaded.
    """

    def __init__(
        self,
        manifest: Manifest,
        deployments: dict[str, Deployment],
        wiring: Wiring,
        *,
        followers: Iterable[Callable[[Mapping[str, Function]], None]] = (),
    ) -> None:
        self.errors: dict[str, str] = {}
        self._deployments = deployments
        self._wiring = wiring
        self._followers = tuple(followers)
        self._manifests = ManifestChanges(manifest, wiring.streams)
        self._wanted: dict[str, Function] = {}
        self._lock = asyncio.Lock()
        self._newest = 0
        self._running: set[asyncio.Task[list[FunctionChange]]] = set()
        self._changed = asyncio.Event()
        self._is_stopped = False

    async def apply(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        errors: Mapping[str, LoadFailure],
    ) -> list[FunctionChange]:
        """See `Host.apply`."""
        if self._is_stopped:
            return []
        self._newest += 1
        one = _Reload(self._newest, manifest, dict(functions), dict(errors))
        task = asyncio.create_task(self._apply(one), name="reload")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.wait({task})
        if task.cancelled():
            log.warning("A reload was cut short, because the host drains")
            return []
        return task.result()

    async def stop(self) -> None:
        """Cut reloads short, and take no more."""
        self._is_stopped = True
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def wait_for_change(self) -> None:
        """Return when a reload has changed a function."""
        await self._changed.wait()

    async def _apply(self, one: "_Reload") -> list[FunctionChange]:
        async with self._lock:
            if one.number != self._newest:
                return []  # A later reload, which waits too, has all that this one has.
            refused = await self._manifests.follow(one.manifest)
            self._give_up_starts(one.functions)
            self._wanted = one.functions
            changes = self._note_errors(one, {**one.errors, **refused})
        kept = {*one.errors, *refused}
        gone = [name for name in self._deployments if name not in one.functions]
        gone = [name for name in gone if name not in kept]
        ports = [name for name in gone if self._deployments[name].bindings.services]
        # The port of a service that is gone may be that of a new one.
        changes += await self._all(self._remove(one, name) for name in ports)
        changes += await self._all(
            [
                *(self._remove(one, name) for name in gone if name not in ports),
                *(
                    self._change(one, name, function)
                    for name, function in one.functions.items()
                    if name not in refused
                ),
            ]
        )
        if changes:
            self._follow()
        return changes

    def _give_up_starts(self, functions: Mapping[str, Function]) -> None:
        """End the starts of versions that are not wanted any more: one that hangs takes long."""
        for name, deployment in self._deployments.items():
            if functions.get(name) is not self._wanted.get(name):
                deployment.give_up_start()

    async def _all(
        self, work: Iterable[Coroutine[Any, Any, FunctionChange | None]]
    ) -> list[FunctionChange]:
        return [found for found in await asyncio.gather(*work) if found is not None]

    def _note_errors(
        self, one: "_Reload", errors: Mapping[str, LoadFailure]
    ) -> list[FunctionChange]:
        """Show the failures; return those not shown before, and the mended ones of no function."""
        others = {name: each for name, each in errors.items() if name not in self._deployments}
        found = [
            one.change(name, "failed", error=failure)
            for name, failure in others.items()
            if self.errors.get(name) != str(failure)
        ]
        found += [
            one.change(name, "mended")
            for name in self.errors
            if name not in others and (name == MANIFESTS or name.startswith(STREAM))
        ]
        self.errors = {name: str(failure) for name, failure in others.items()}
        return found + [
            change
            for name, failure in errors.items()
            if name in self._deployments
            and (change := self._fail(one, self._deployments[name], failure))
        ]

    def _fail(
        self, one: "_Reload", deployment: Deployment, failure: LoadFailure
    ) -> FunctionChange | None:
        """Show why the last good version runs on; None when that was shown before."""
        status, version = deployment.status, deployment.function.code_version
        if status is None or status.reload_error == status.shown(str(failure)):
            return None
        status.failed(str(failure))
        return one.change(deployment.name, "failed", version, version, error=failure)

    async def _change(self, one: "_Reload", name: str, new: Function) -> FunctionChange | None:
        """Let one function follow; the changes of one function are made one after the other."""
        deployment = self._deployments.get(name)
        if deployment is None:
            return await self._add(one, new)
        async with deployment.lock:
            if self._wanted.get(name) is not new:
                return None  # A later reload wants another version.
            if self._deployments.get(name) is deployment:
                return await self._change_locked(one, deployment, new)
        return await self._change(one, name, new)  # It could not start, or was removed.

    async def _change_locked(
        self, one: "_Reload", deployment: Deployment, new: Function
    ) -> FunctionChange | None:
        name, before = deployment.name, deployment.function.code_version
        is_mended = name not in one.errors
        try:
            action = await self._follow_version(deployment, new, is_mended=is_mended)
        except Superseded:
            return None
        except Exception as failure:  # noqa: BLE001 - whatever a module's start raises
            return self._fail(one, deployment, failure_of(failure, name))
        return one.change(name, action, before, new.code_version) if action else None

    async def _follow_version(
        self, deployment: Deployment, new: Function, *, is_mended: bool
    ) -> Action | None:
        """Let a deployment run a version; None when it runs it already."""
        grace_s = self._wiring.options.rebind_grace_s
        how = how_to_apply(deployment.function, new)
        action: Action | None = None
        if not isinstance(how, Keep):
            await self._wiring.resources.open_for(new)
        match how:
            case Swap():
                await deployment.swap(new, starts=how.starts)
                action = "swapped"
            case Rebind():
                await deployment.rebind(new, starts=how.starts, grace_s=grace_s)
                action = "rebound"
            case Restart():
                await deployment.restart(new, grace_s=grace_s)
                action = "rebound"
        status = deployment.status
        if status is not None and is_mended and (action or status.reload_error):
            action = action or "mended"
            status.swapped(deployment.function)
        return action

    async def _add(self, one: "_Reload", new: Function) -> FunctionChange | None:
        name = new.name
        try:
            await self._wiring.resources.open_for(new)
            deployment = Deployment(new, self._wiring)
        except Exception as failure:  # noqa: BLE001 - one function must not fail the others
            return self._fail_to_add(one, name, failure)
        async with deployment.lock:
            self._deployments[name] = deployment
            try:
                await deployment.begin()
            except Superseded:
                del self._deployments[name]
                return None
            except Exception as failure:  # noqa: BLE001 - whatever a module's start raises
                del self._deployments[name]
                return self._fail_to_add(one, name, failure)
        return one.change(name, "started", "", new.code_version)

    def _fail_to_add(self, one: "_Reload", name: str, raised: Exception) -> FunctionChange | None:
        failure = failure_of(raised, name)
        if self.errors.get(name) == str(failure):
            return None
        self.errors[name] = str(failure)
        return one.change(name, "failed", error=failure)

    async def _remove(self, one: "_Reload", name: str) -> FunctionChange | None:
        deployment = self._deployments[name]
        async with deployment.lock:
            if name in self._wanted or self._deployments.get(name) is not deployment:
                return None
            try:
                await deployment.remove(self._wiring.options.rebind_grace_s)
            except Exception:
                log.exception("A removed function did not end as it should", function=name)
            del self._deployments[name]
        return one.change(name, "stopped", deployment.function.code_version, "")

    def _follow(self) -> None:
        """Tell everything else of the process which functions run now."""
        functions = {name: each.function for name, each in self._deployments.items()}
        self._wiring.streams.serve(functions)
        self._wiring.fill.follow(self._manifests.accepted)
        self._wiring.unread.follow(self._manifests.accepted)
        for follow in self._followers:
            follow(functions)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class _Reload:
    """One call of `apply`."""

    def __init__(
        self,
        number: int,
        manifest: Manifest,
        functions: dict[str, Function],
        errors: dict[str, LoadFailure],
    ) -> None:
        self.number = number
        self.manifest = manifest
        self.functions = functions
        self.errors = errors
        self._time = asyncio.get_running_loop().time
        self._began_s = self._time()

    def change(
        self,
        name: str,
        action: Action,
        before: str = "",
        after: str = "",
        *,
        error: LoadFailure | None = None,
    ) -> FunctionChange:
        elapsed_ms = round((self._time() - self._began_s) * 1000, 1)
        return FunctionChange(name, action, before, after, elapsed_ms, error)


__all__ = ["DeploymentChanges"]
