"""Turns: steps of concurrent batches that follow one another in the order of the batches."""

import asyncio
from types import TracebackType
from typing import Self


class Turns:
    """Gives out turns, each of which is reached when all turns before it are left."""

    def __init__(self) -> None:
        self._last: asyncio.Future[None] | None = None

    def enter(self) -> "Turn":
        """The turn of a batch; call it in the order of the batches."""
        turn = Turn(self._last)
        self._last = turn.ended
        return turn


class Turn:
    """The turn of one batch, which is left at the end of a `with` block, if not before.

    Attributes:
        ended: done when this turn and all before it are left.
    """

    def __init__(self, before: "asyncio.Future[None] | None") -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._before = before
        self._is_left = False

    async def reached(self) -> None:
        """Wait until all turns before this one are left."""
        if self._before is not None and not self._before.done():
            await asyncio.wait([self._before])

    def leave(self) -> None:
        """Let the next turn begin; one that was not reached is skipped, and the order stays."""
        if self._is_left:
            return
        self._is_left = True
        before, self._before = self._before, None
        if before is None or before.done():
            self.ended.set_result(None)
        else:
            before.add_done_callback(lambda _: self.ended.set_result(None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()


__all__ = ["Turn", "Turns"]
