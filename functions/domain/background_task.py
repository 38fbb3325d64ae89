"""A task beside the calls of a function, from its start hook to its stop hook."""

import asyncio
from abc import ABC, abstractmethod

import structlog

_FIRST_PAUSE_S = 1.0
_MAX_PAUSE_S = 60.0


class BackgroundTask(ABC):
    """Base of what runs `_run` as a task.

    `_run` judges the failures that it expects. Any other exception is logged with its traceback,
    and `_run` is called again after a pause, which doubles up to a minute.

    Args:
        log: the function's.
    """

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run_on(), name=type(self).__name__)

    async def stop(self) -> None:
        """Cancel the task, and return when it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @abstractmethod
    async def _run(self) -> None:
        """What the task does."""

    async def _run_on(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._run()
            except Exception:  # noqa: BLE001 - what nobody foresaw must not end the task
                self._log.exception(
                    "A background task of a function failed and begins again",
                    task=type(self).__name__,
                    pause_s=pause_s,
                )
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)


__all__ = ["BackgroundTask"]
