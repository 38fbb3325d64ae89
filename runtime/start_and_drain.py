"""Starts bindings all or none, and drains them in order: callers before endpoints."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from runtime.observe.logs import get_logger

log = get_logger("runtime.host")


class Drained(Protocol):
    """The part of a binding that a drain needs."""

    name: str

    async def drain(self, grace_s: float) -> None:
        """Take no new messages, finish the held ones, then stop."""

    async def stop(self) -> None:
        """Stop at once."""


async def all_or_none(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all concurrently; when one fails, cancel the others before its failure is raised.

    Raises:
        Exception: the exception of the first one that failed.
    """
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        # `gather` alone would raise the first failure and let the others go on.
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def drain_in_order(
    groups: Sequence[Sequence[Drained]],
    grace_s: float,
    before_last: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Drain the groups one after the other, all within `grace_s`.

    A group begins when the groups before it have ended, or have used half of the remaining time, so
    that a caller that does not end leaves time for the endpoints that it calls. A binding whose
    drain fails is logged, and the others are drained all the same.

    Args:
        groups: groups of bindings, callers first.
        grace_s: time limit for all groups together.
        before_last: awaited before the last group begins, within the time of the group before.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + grace_s
    tasks: set[asyncio.Task[object]] = set()
    try:
        for number, group in enumerate(groups):
            if number == len(groups) - 1 and before_last is not None:
                tasks.add(asyncio.create_task(_await(before_last), name="drain"))
                await _wait_half(tasks, end_s)
            left_s = max(0.0, end_s - loop.time())
            tasks |= {
                asyncio.create_task(_drain(binding, left_s), name=f"drain {binding.name}")
                for binding in group
            }
            if number < len(groups) - 1:
                await _wait_half(tasks, end_s)
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def stop_all(bindings: Sequence[Drained]) -> None:
    """Stop all bindings; a failure is logged, and the others are stopped all the same."""
    ended = await asyncio.gather(*(binding.stop() for binding in bindings), return_exceptions=True)
    for binding, failure in zip(bindings, ended, strict=True):
        if isinstance(failure, Exception):
            log.error("A binding could not be stopped", binding=binding.name, exc_info=failure)


async def _drain(binding: Drained, grace_s: float) -> None:
    try:
        await binding.drain(grace_s)
    except Exception:
        log.exception("A binding could not be drained", binding=binding.name)


async def _wait_half(tasks: set["asyncio.Task[object]"], end_s: float) -> None:
    left_s = max(0.0, end_s - asyncio.get_running_loop().time())
    if tasks:
        await asyncio.wait(tasks, timeout=left_s / 2)


async def _await(wanted: Callable[[], Awaitable[object]]) -> object:
    return await wanted()
