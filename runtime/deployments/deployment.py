"""One function of a process: its version, dispatcher, bindings, threads and hooks."""

import asyncio
from collections.abc import Iterable

from runtime.call.threads import FunctionThreads
from runtime.deployments.function_bindings import Binding, FunctionBindings
from runtime.deployments.function_status import FunctionStatus
from runtime.deployments.how_to_apply import kind_of
from runtime.deployments.started_function import StartedFunction
from runtime.dispatch import Dispatcher
from runtime.loader import Function
from runtime.observe.logs import get_logger
from runtime.wiring import Wiring

log = get_logger("runtime.host")

LAST_CALLS_S = 1.0
"""How long the `stop` of an old version waits for its last calls when the host stops."""


class Superseded(Exception):  # noqa: N818 - names what happened
    """A later reload wants another version than the one whose `start` was running."""


class Deployment:
    """One function of a process, from its start to its removal.

    Args:
        function: the version to begin with.
        wiring: the services that all functions share.

    Attributes:
        name: the function's name.
        lock: held during a change.
        bindings: what pulls, ticks or serves.
        is_changing: whether the bindings are being replaced, so that they do not flow now.
    """

    def __init__(self, function: Function, wiring: Wiring) -> None:
        self.name = function.name
        self.lock = asyncio.Lock()
        self.is_changing = False
        self._wiring = wiring
        self._started = self._prepare(function)
        self._threads = FunctionThreads(self.name, function.spec.concurrency)
        self._dispatcher = Dispatcher(function, self._started.scope, threads=self._threads)
        self.bindings = FunctionBindings(self._dispatcher, wiring)
        self._retiring: set[asyncio.Task[None]] = set()
        self._is_closing = asyncio.Event()
        self._starting: asyncio.Task[None] | None = None
        self._has_started = False

    @property
    def function(self) -> Function:
        """The version that the next call runs."""
        return self._started.function

    @property
    def threads(self) -> FunctionThreads | None:
        """The threads of a plain function; None for an async one."""
        return None if self.function.is_async else self._threads

    @property
    def status(self) -> FunctionStatus | None:
        """Since when the version runs and how the last reload ended; None before it is bound."""
        return self._wiring.discovery.statuses.get(self.name)

    async def start(self) -> None:
        """Call the module's `start`.

        Raises:
            ConfigError: the hook failed for a reason of its own.
            Unavailable: a server that the hook needs does not answer.
        """
        await self._run_start(self._started)
        self._has_started = True

    def give_up_start(self) -> None:
        """End the `start` that a reload has begun, which raises `Superseded` there."""
        if self._starting is not None:
            self._starting.cancel()

    def bind(self, *, has_run: bool = False) -> None:
        """Build the bindings of the version that was started; see `FunctionBindings.build`."""
        self._use_version()
        self.bindings.build(self._started, has_run=has_run)

    async def swap(self, function: Function, *, starts: bool) -> None:
        """Run `function` from the next call on; pulling and held messages are not touched.

        Args:
            function: the new version.
            starts: whether it gets a scope of its own, so that its `start` runs, before the swap.

        Raises:
            ConfigError: its `start` failed, and the version before runs on.
            Unavailable: a server that its `start` needs does not answer; likewise.
        """
        fresh = await self._start_next(function) if starts else self._started
        old, self._started = self._started, fresh
        self._use_version(function)
        if fresh is not old:
            self._retire(old)

    async def rebind(self, function: Function, *, starts: bool, grace_s: float) -> None:
        """Drain the bindings and build those of `function`; an endpoint's takes over at once.

        Raises:
            ConfigError: its `start` or its binding failed, and the version before runs on.
            Unavailable: a server that it needs does not answer; likewise.
        """
        fresh = await self._start_next(function) if starts else self._started
        old, before = self._started, self.function
        has_run = before.spec.schedule is not None
        self.is_changing = True
        try:
            await self.bindings.drain(grace_s)
            self._started, fresh.function = fresh, function
            await self._begin(has_run=has_run)
        except Exception:
            log.warning("The binding before is built again", function=self.name)
            await self.bindings.drain(0)
            self._started, old.function = old, before
            await self._begin(has_run=has_run)
            raise
        finally:
            self.is_changing = False
            if fresh is not old:
                # Also when the host's drain cut this short: whatever was started is stopped.
                self._retire(old if self._started is fresh else fresh)

    async def restart(self, function: Function, *, grace_s: float) -> None:
        """End the function, its `stop` included, and begin again with `function`.

        Raises:
            ConfigError: its `start` failed, or the service ended at once; the version before was
                started again.
            Unavailable: a server that it needs does not answer; likewise.
        """
        old = self.function
        is_other_kind = kind_of(old.spec) != kind_of(function.spec)
        self.is_changing = True
        try:
            await self._end(grace_s)
            if is_other_kind:
                await self._forget()
            try:
                await self._begin_anew(function)
            except Exception:
                log.warning("The version before is started again", function=self.name)
                await self._end(0)
                if is_other_kind:
                    await self._forget()
                await self._begin_anew(old)
                raise
        finally:
            self.is_changing = False

    async def begin(self) -> None:
        """Start a function that was added to a running host: `start`, then its bindings.

        Raises:
            ConfigError: its `start` or its binding failed; nothing of it is left.
            Unavailable: a server that it needs does not answer; likewise.
        """
        self.is_changing = True
        try:
            await self.start()
            await self._begin()
        except BaseException:
            await self.remove(0)
            raise
        finally:
            self.is_changing = False

    async def remove(self, grace_s: float) -> None:
        """Drain the bindings, call `stop`, and take the function out of everything shared."""
        self.is_changing = True
        await self._end(grace_s)
        await self.close()
        await self._forget(grace_s)
        self._wiring.resources.drop(self.name)

    async def close(self) -> None:
        """Call the `stop` of every version that was started; its bindings have stopped before."""
        if self._retiring:
            await asyncio.wait(self._retiring, timeout=LAST_CALLS_S)
        self._is_closing.set()
        started, self._has_started = self._has_started, False
        await asyncio.gather(*self._retiring, *([self._started.stop()] if started else []))
        self.bindings.release()
        self._threads.shutdown()

    def _prepare(self, function: Function) -> StartedFunction:
        resources = self._wiring.resources.of(function)
        return StartedFunction(function, self._wiring.broker, resources)

    async def _start_next(self, function: Function) -> StartedFunction:
        fresh = self._prepare(function)
        await self._run_start(fresh, before=self._started)
        return fresh

    async def _run_start(
        self, started: StartedFunction, before: StartedFunction | None = None
    ) -> None:
        starting = asyncio.create_task(started.start(before), name=f"start {self.name}")
        self._starting = starting
        try:
            await asyncio.wait({starting})
        finally:
            self._starting = None
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if starting.cancelled():
            raise Superseded
        starting.result()

    def _use_version(self, function: Function | None = None) -> None:
        """Let the dispatcher run the started version, or `function` with its scope."""
        version = self._started.as_version(function)
        spec = version.function.spec
        self._dispatcher.swap(version)
        self._threads.resize(spec.concurrency)
        self._wiring.resources.follow_timeout(version.function)
        attempts = spec.retry.max_attempts
        self._wiring.failures.of(self.name, attempts).max_attempts = attempts

    async def _begin(self, *, has_run: bool = False) -> None:
        """Build and start the bindings of the version that was started."""
        self.bind(has_run=has_run)
        await self.bindings.start()

    async def _begin_anew(self, function: Function) -> None:
        """Start a version, then its bindings; a service must outlive its first moments."""
        self._started = self._prepare(function)
        await self.start()
        await self._begin()
        for service in self.bindings.services:
            await service.check_start()

    async def _end(self, grace_s: float) -> None:
        """Drain the bindings, then call `stop`."""
        await self.bindings.drain(grace_s)
        if self._has_started:
            self._has_started = False
            await self._started.stop()

    async def _forget(self, grace_s: float = 0.0) -> None:
        """Take the function out of discovery and metrics."""
        await self._wiring.discovery.remove(self.name, grace_s)
        self._wiring.metrics.forget(self.name)

    def _retire(self, old: StartedFunction) -> None:
        """Let the last calls of an old version end, then call its `stop`."""

        async def retire() -> None:
            idle = asyncio.create_task(old.wait_until_idle())
            closing = asyncio.create_task(self._is_closing.wait())
            await asyncio.wait({idle, closing}, return_when=asyncio.FIRST_COMPLETED)
            idle.cancel()
            closing.cancel()
            await old.stop()

        task = asyncio.create_task(retire(), name=f"retire {self.name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def flowing(deployments: Iterable[Deployment]) -> list[Binding]:
    """The bindings that should flow now."""
    return [
        binding
        for deployment in deployments
        if not deployment.is_changing
        for binding in deployment.bindings.current
    ]


__all__ = ["Deployment", "Superseded", "flowing"]
