"""Binding of a service: a function that runs from the host's start to its drain."""

import asyncio
from asyncio import FIRST_COMPLETED

from runtime.call.call_task import create_call_task, failure_of, take_back_own_cancels
from runtime.call.function_version import Owner, running_owner
from runtime.context import Context, Scope
from runtime.errors import ConfigError
from runtime.loader import Function
from runtime.observe.failures import FailureLog
from runtime.observe.logs import get_logger, running_function

log = get_logger("runtime.service")

RESTART_FIRST_S = 0.5
RESTART_CAP_S = 30.0
SETTLE_S = 0.25
"""How long a reload watches a new version before it counts as started."""
STEADY_S = 60.0
"""After this long without a crash the waits start small again."""


class ServiceBinding:
    """Runs one service function until drained, and restarts it after a crash.

    Args:
        function: the function.
        scope: the scope of its one call.
        failures: its failure log.
        owner: marks the tasks that its code creates.
    """

    def __init__(
        self, function: Function, scope: Scope, failures: FailureLog, owner: Owner | None = None
    ) -> None:
        self._failures = failures
        self.name = function.name
        self.restarts = 0
        self._function = function
        self._scope = scope
        self._task: asyncio.Task[None] | None = None
        self._began = asyncio.Event()
        self._owner = owner
        self._crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_flowing(self) -> bool:
        """Whether the service runs."""
        return self._task is not None and not self._task.done() and self._began.is_set()

    @property
    def has_ended(self) -> bool:
        """Whether the service has ended for good; `wait` raises the reason."""
        return self._task is not None and self._task.done()

    async def start(self) -> None:
        """Start the service in the background."""
        self._task = create_call_task(self._run(), name=f"service {self.name}")
        # Run it up to its first wait: then a taken port is known already.
        await asyncio.sleep(0)

    async def check_start(self, wait_s: float = SETTLE_S) -> None:
        """Return when the service has run for `wait_s` without a crash.

        Raises:
            ConfigError: the service cannot run with its configuration.
            Exception: the exception that ended its first run, or it returned.
        """
        if self._task is None:
            return
        await asyncio.wait([self._task, self._crashed], timeout=wait_s, return_when=FIRST_COMPLETED)
        if self._task.done() and not self._task.cancelled():
            self._task.result()
        if self._crashed.done():
            self._crashed.result()
            raise RuntimeError("the service returned without being asked to stop")

    async def drain(self, grace_s: float) -> None:
        """Ask the service to stop, and cancel it when it has not stopped within `grace_s`."""
        self._scope.stopping.set()
        if self._task is None:
            return
        _, late = await asyncio.wait([self._task], timeout=grace_s)
        if late:
            log.warning("Service did not stop in time and was ended", function=self.name)
        await self.stop()

    async def stop(self) -> None:
        """Cancel the service at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def wait(self) -> None:
        """Return when the service has ended for good.

        Raises:
            ConfigError: the service cannot run with its configuration, for a taken port for
                example.
        """
        if self._task is None:
            return
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = RESTART_FIRST_S
        running_owner.set(self._owner)
        running_function.set(self._function.name)
        while not self._scope.stopping.is_set():
            began_s = loop.time()
            failure: Exception | None
            self._began.set()
            try:
                await self._function.handler(Context(self._scope))
            except ConfigError:
                raise
            except BaseException as raised:  # noqa: BLE001 - whatever it is, the service goes on
                failure = failure_of(raised, self._task)
            else:
                if self._scope.stopping.is_set():
                    return
                failure = None
            if self._task is not None:
                await take_back_own_cancels(self._task)
            self._began.clear()
            self.restarts += 1
            if not self._crashed.done():
                _set_failure(self._crashed, failure)
            pause_s = RESTART_FIRST_S if loop.time() - began_s > STEADY_S else pause_s
            if failure is not None:
                self._failures.crashed(failure, restarts=self.restarts, again_in_s=pause_s)
            else:
                log.warning("Service returned without being asked to stop", function=self.name)
            await self._pause(pause_s)
            pause_s = min(RESTART_CAP_S, pause_s * 2)

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._scope.stopping.wait()
        except TimeoutError:
            return


def _set_failure(future: "asyncio.Future[None]", failure: Exception | None) -> None:
    if failure is None:
        future.set_result(None)
        return
    future.set_exception(failure)
    future.exception()  # Read, or asyncio logs that nobody has: only a reload asks.
