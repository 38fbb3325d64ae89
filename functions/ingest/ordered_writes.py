"""Writes of batches, of which those with jobs in an order follow one another."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class OrderedWrites:
    """Lets a batch write when the one before it, in the order of `enter`, has ended.

    A process writes several batches at a time. Without this, the jobs of one device could be
    committed in another order than its messages were stored.
    """

    def __init__(self) -> None:
        self._last: asyncio.Event | None = None

    def enter(self) -> "Turn":
        """The place of a batch; call it in the order of the batches."""
        turn = Turn(self._last)
        self._last = turn.ended
        return turn


class Turn:
    """The place of one batch.

    Attributes:
        ended: set when the batch is written, or has failed.
    """

    def __init__(self, before: asyncio.Event | None) -> None:
        self.ended = asyncio.Event()
        self._before = before

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for the batch before; the end of the block lets the next one write."""
        try:
            if self._before is not None:
                await self._before.wait()
            yield
        finally:
            self.ended.set()
            self._before = None


__all__ = ["OrderedWrites", "Turn"]
