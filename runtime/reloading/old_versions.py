"""Frees the old versions of functions, when their last calls have ended."""

import asyncio
import gc
import typing
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from runtime.loader import Function

FIRST_S = 1.0
MOST_LOOKS = 8
"""After one second, two, four and so on: four minutes in all. What is left then is held by the
project itself, such as a thread that it started or a registry of a library."""


class OldVersions:
    """Collects what a reload has replaced.

    A module's functions and globals refer to each other, so only the garbage collector frees them,
    and the host lets it run rarely. It takes about 0.1 s, so it runs only while an old version is
    known to be left.
    """

    def __init__(self) -> None:
        self._left: list[weakref.ref[Any]] = []
        self._task: asyncio.Task[None] | None = None

    def collect(self, before: Mapping[str, Function], now: Mapping[str, Function]) -> None:
        """Collect the versions of `before` that are not in `now`, as soon as they are unused."""
        for name, function in before.items():
            if now.get(name) is not function:
                self._left += _reference(function.handler)
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._collect(), name="old versions")

    async def stop(self) -> None:
        """Stop collecting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _collect(self) -> None:
        pause_s = FIRST_S
        for _ in range(MOST_LOOKS):
            await asyncio.sleep(pause_s)
            free_unused()
            self._left = [each for each in self._left if each() is not None]
            if not self._left:
                return
            pause_s *= 2


def free_unused() -> None:
    """Free what only reference cycles, or the caches of `typing`, still hold."""
    # `Event[Order]` is kept by a cache of typing, and Order keeps its whole module.
    cleanups: list[Callable[[], None]] = getattr(typing, "_cleanups", [])
    for clean in cleanups:
        clean()
    gc.unfreeze()  # The first versions were frozen when the host became ready.
    gc.collect()


def _reference(handler: object) -> list[weakref.ref[Any]]:
    function = getattr(handler, "__func__", handler)  # A bound method itself lives a moment only.
    try:
        return [weakref.ref(function)]
    except TypeError:
        return []


__all__ = ["OldVersions", "free_unused"]
