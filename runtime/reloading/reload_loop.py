"""Reloads whenever files change, and says what became of it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from runtime.deployments.function_change import FunctionChange
from runtime.observe.logs import get_logger
from runtime.reloading.file_watch import FileWatch
from runtime.reloading.reload_report import report
from runtime.reloading.watched_places import WatchedPlaces
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.reload")

SETTLED_S = 0.05
"""How long files must rest before a mistake in them is reported: it may be half of a file. What is
right is swapped in without this wait."""


class Reload(Protocol):
    """Reloads what has changed, see `Reloader.reload`."""

    async def __call__(
        self,
        *,
        touched: frozenset[Path] = frozenset(),
        is_settled: Callable[[], Awaitable[bool]] | None = None,
    ) -> list[FunctionChange]:
        """Reload, and return what became of each function."""


class ReloadLoop:
    """Watches files and reloads, until it is stopped.

    Args:
        reload: does it.
        places: where to watch; called again after each reload.
        polls: whether to look at the files instead of listening to events.
    """

    def __init__(
        self, reload: Reload, places: Callable[[], WatchedPlaces], *, polls: bool = False
    ) -> None:
        self._reload = reload
        self._places = places
        self._polls = polls
        self._task = SupervisedTask(self._run, "reload")

    def start(self) -> None:
        """Begin."""
        self._task.start()

    async def stop(self) -> None:
        """Stop; a reload that has begun is cancelled."""
        await self._task.stop()

    async def _run(self) -> None:
        watch = FileWatch(self._places, polls=self._polls)

        async def is_settled() -> bool:
            return not await watch.changes_within(SETTLED_S)

        await watch.start()
        running: set[asyncio.Task[None]] = set()
        try:
            # The first time for what has changed before the watch began.
            touched: frozenset[Path] = frozenset()
            while True:
                work = self._reload_once(watch, touched, is_settled)
                task = asyncio.create_task(work, name="reload")
                running.add(task)
                task.add_done_callback(running.discard)
                touched = await watch.wait()
                await watch.follow()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await watch.stop()

    async def _reload_once(
        self,
        watch: FileWatch,
        touched: frozenset[Path],
        is_settled: Callable[[], Awaitable[bool]],
    ) -> None:
        try:
            report(await self._reload(touched=touched, is_settled=is_settled))
            await watch.follow()
        except Exception:
            log.exception("A reload failed; everything runs on as it was")


__all__ = ["Reload", "ReloadLoop"]
