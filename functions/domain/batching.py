"""Collects what concurrent callers want from the database into one statement."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Runs items together: those that arrive while a batch runs are the next batch.

    A caller that is alone waits for nothing. When a batch fails because of its data, its items are
    run one by one, so that one item that the database refuses fails alone.

    Args:
        run: takes items, and returns a result for each, in order.
        key: two items of one key are never in one batch.
        is_fault_of_data: whether an exception may be the fault of one item.
        max_items: bound on a batch.
        max_running: number of batches that may run at the same time.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        key: Callable[[T], Hashable],
        is_fault_of_data: Callable[[Exception], bool],
        max_items: int = 500,
        max_running: int = 1,
    ) -> None:
        self._run = run
        self._key = key
        self._is_fault_of_data = is_fault_of_data
        self._max_items = max_items
        self._max_running = max_running
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._running: set[asyncio.Task[None] | None] = set()
        self._loop = asyncio.get_running_loop()

    async def add(self, item: T) -> R:
        """Run an item in the next batch; return its result.

        Raises:
            Exception: the exception of the batch, or of the item when it was run alone.
        """
        done: asyncio.Future[R] = self._loop.create_future()
        self._waiting.append((item, done))
        if len(self._running) < self._max_running:
            self._start()
        return await done

    async def close(self) -> None:
        """Wait for what was added."""
        await asyncio.gather(*(task for task in self._running if task))

    def _start(self) -> None:
        task = self._loop.create_task(self._run_waiting())
        self._running.add(task)

    async def _run_waiting(self) -> None:
        while batch := self._take():
            await self._run_batch(batch)
        # At once, and not in a callback of the task: an item that comes before it would not be run.
        self._running.discard(asyncio.current_task())

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        batch: list[tuple[T, asyncio.Future[R]]] = []
        left: list[tuple[T, asyncio.Future[R]]] = []
        keys: set[Hashable] = set()
        for item, done in self._waiting:
            # A caller that was cancelled meanwhile wants nothing any more.
            if done.done():
                continue
            key = self._key(item)
            if len(batch) == self._max_items or key in keys:
                left.append((item, done))
            else:
                keys.add(key)
                batch.append((item, done))
        self._waiting = left
        return batch

    async def _run_batch(self, batch: list[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            results = await self._run([item for item, _ in batch])
        except Exception as failure:  # noqa: BLE001 - every caller gets it
            if len(batch) > 1 and self._is_fault_of_data(failure):
                for one in batch:
                    await self._run_batch([one])
                return
            for _, done in batch:
                if not done.done():
                    done.set_exception(failure)
            return
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)


__all__ = ["Batcher"]
