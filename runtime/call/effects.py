"""Tracks the effects that one call of a function has begun with its context."""

import asyncio
from collections.abc import Coroutine
from types import CodeType, CoroutineType
from typing import Any, cast

from runtime.errors import EffectNotAwaited
from runtime.user_frames import place_of

_PRUNE_FROM = 64
_TURNS = 10
"""Turns of the event loop: a cancelled request needs them to end its subscription."""

Effect = tuple[Coroutine[Any, Any, Any], str, CodeType, int]
"""A coroutine that a method of the context returned, the method's name, and the line of the
call."""


class Effects:
    """Records whether each effect was awaited to its end.

    An effect that was not awaited is lost, or happens after the message was acknowledged.
    """

    __slots__ = ("_begun", "_prune_at")

    def __init__(self) -> None:
        self._begun: list[Effect] = []
        self._prune_at = _PRUNE_FROM

    def add(self, effect: Effect) -> None:
        """Watch one."""
        begun = self._begun
        if len(begun) >= self._prune_at:
            begun[:] = self.left()
            self._prune_at = max(_PRUNE_FROM, 2 * len(begun))
        begun.append(effect)

    def left(self) -> list[Effect]:
        """The effects that were not awaited to their end."""
        return [effect for effect in self._begun if effect[0].cr_frame is not None]  # type: ignore[attr-defined]

    async def check(self, *, begun_too: bool = True) -> None:
        """Check, after the function has returned, that all effects have ended.

        Args:
            begun_too: whether an effect that still runs in a task is an error too.

        Raises:
            EffectNotAwaited: an effect was never awaited, or still runs.
        """
        # Tasks that were created or cancelled a moment ago run first.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            left = [each for each in self.left() if begun_too or not _has_begun(each)]
            if not left:
                return
        _, name, code, line = left[0]
        wrong = "had not ended" if _has_begun(left[0]) else "was not awaited"
        if len(left) > 1:
            wrong = f"and {len(left) - 1} more had not ended"
        raise EffectNotAwaited(f"ctx.{name}", place_of(code.co_filename, line), wrong)

    async def close(self) -> None:
        """Drop effects that were never awaited, without Python's warning."""
        if not self.left():
            return
        await asyncio.sleep(0)
        for effect in self.left():
            if not _has_begun(effect):
                effect[0].close()


def _has_begun(effect: Effect) -> bool:
    work = cast("CoroutineType[Any, Any, Any]", effect[0])
    return work.cr_suspended or work.cr_running
