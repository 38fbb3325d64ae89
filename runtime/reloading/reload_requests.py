"""Reloads that are asked for: by SIGHUP, or by the supervisor of a worker."""

import asyncio
from collections.abc import Awaitable, Callable

from runtime.deployments.function_change import FunctionChange
from runtime.observe.logs import get_logger
from runtime.reloading.reload_report import report

log = get_logger("runtime.reload")

Reload = Callable[[], Awaitable[list[FunctionChange]]]
Report = Callable[[list[FunctionChange]], None]


class ReloadRequests:
    """Runs each reload that is asked for in a task of its own, and reports it.

    Args:
        reload: reloads what is on disk; calls at the same time are its own affair.
    """

    def __init__(self, reload: Reload) -> None:
        self._reload = reload
        self._tasks: set[asyncio.Task[None]] = set()

    def hang_up(self) -> None:
        """Reload because of SIGHUP: the log says what became of it, or that nothing has changed."""
        self.ask(_tell)

    def ask(self, tell: Report) -> None:
        """Reload once, and pass the changes on; none after a failure, which is logged."""
        task = asyncio.create_task(self._run(tell), name="reload by request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End the reloads that are under way; those of the host are cut short by its drain."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, tell: Report) -> None:
        changes: list[FunctionChange] = []
        try:
            changes = await self._reload()
        except Exception:
            log.exception("A reload failed; everything runs on as it was")
        finally:
            tell(changes)


def _tell(changes: list[FunctionChange]) -> None:
    if changes:
        report(changes)
    else:
        log.info("Reloaded, and nothing has changed")


__all__ = ["ReloadRequests"]
