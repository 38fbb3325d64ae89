"""Starts things together or not at all, and drains bindings: callers before what they call."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

from runtime.observe.logs import get_logger

log = get_logger("runtime.host")


class Drained(Protocol):
    """What is asked of a binding."""

    name: str

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, finish what is here, then end."""

    async def stop(self) -> None:
        """End at once."""


async def all_or_none(starts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; when one fails, end the others before its failure is raised.

    Raises:
        Exception: what the first one that failed raised.
    """
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        # Alone, `gather` would raise the first failure and let the others go on.
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
    """Drain the groups one after the other, all of them within `grace_s`.

    A group begins when those before it have ended, or have had half of the time that was left:
    then a caller that does not end cannot take all the time from those that it calls. A binding
    whose drain fails is logged, and keeps no other from being drained.

    Args:
        groups: the callers first.
        grace_s: for all of them together.
        before_last: awaited before the last group begins, in the time of the group before.
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
    """End all of them at once; one that fails is logged, and keeps no other from ending."""
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
