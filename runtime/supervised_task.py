"""Background task that is restarted with backoff after an unexpected failure."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from runtime.observe.logs import get_logger

log = get_logger("runtime.tasks")

RESTART_FIRST_S = 0.1
RESTART_CAP_S = 10.0
STEADY_S = 60.0
"""After this long without a failure the pauses start small again."""


class SupervisedTask:
    """Runs a coroutine function as a task until stopped.

    Every exception that ends a run, also a cancellation other than by `stop` and any
    `BaseException`, is logged as an error with its traceback. The next run begins after a pause,
    which doubles. A run that returns ends the task for good.

    Args:
        run: called for each run; must leave its owner in a state in which it can be called again.
        name: the task's name in the log and in the readiness probe.
        on_failure: called before the pause, to release what the failed run held.
    """

    def __init__(
        self,
        run: Callable[[], Coroutine[Any, Any, None]],
        name: str,
        *,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self._run = run
        self._on_failure = on_failure
        self._task: asyncio.Task[None] | None = None
        self._restart: asyncio.TimerHandle | None = None
        self._pause_s = RESTART_FIRST_S
        self._began_s = 0.0
        self._stopped = False

    @property
    def is_flowing(self) -> bool:
        """Whether a run is under way; False during the pause after a failure."""
        return self._task is not None and not self._task.done()

    @property
    def has_ended(self) -> bool:
        """Whether the last run returned or the task was stopped: no other run will begin."""
        return self._task is not None and self._task.done() and self._restart is None

    def start(self) -> "SupervisedTask":
        """Begin the first run; return this object."""
        self._stopped = False
        self._begin()
        return self

    def cancel(self) -> None:
        """Cancel the task without waiting for its end."""
        self._stopped = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """Cancel the task, whether or not it has begun; return when its run has ended."""
        self.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._restart = None
        self._began_s = loop.time()
        self._task = loop.create_task(self._run(), name=self.name)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        # Read also when stopped, or asyncio logs that the exception was never retrieved.
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._stopped or failure is None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._began_s > STEADY_S:
            self._pause_s = RESTART_FIRST_S
        log.error(
            "A background task failed, it is started again",
            task=self.name,
            pause_s=self._pause_s,
            exc_info=failure,
        )
        self._restart = loop.call_later(self._pause_s, self._begin)
        self._pause_s = min(RESTART_CAP_S, self._pause_s * 2)
        if self._on_failure is not None:
            self._on_failure()


__all__ = ["SupervisedTask"]
