"""Batches of what concurrent callers want."""

import asyncio
from collections.abc import Sequence

import pytest

from functions.domain.batching import Batcher


class Doubling:
    """Doubles numbers; refuses a batch with a negative one; blocks until `free` is set."""

    def __init__(self, *, max_items: int = 100) -> None:
        self.batches: list[list[int]] = []
        self.started, self.free = asyncio.Event(), asyncio.Event()
        self.free.set()
        self.batcher = Batcher(
            self._run,
            key=abs,
            is_fault_of_data=lambda failure: isinstance(failure, ValueError),
            max_items=max_items,
        )

    async def _run(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        await self.free.wait()
        if 5000 in items:
            raise ConnectionError
        if min(items) < 0:
            raise ValueError
        return [2 * item for item in items]


async def test_items_that_come_while_a_batch_runs_are_the_next_batch() -> None:
    doubling = Doubling()
    doubling.free.clear()
    tasks = [asyncio.create_task(doubling.batcher.add(1))]
    await doubling.started.wait()
    tasks += [asyncio.create_task(doubling.batcher.add(number)) for number in (2, 3, 4)]
    await asyncio.sleep(0)
    doubling.free.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert doubling.batches == [[1], [2, 3, 4]]


async def test_one_caller_after_another_is_served_without_delay() -> None:
    doubling = Doubling()
    async with asyncio.timeout(60):
        assert [await doubling.batcher.add(number) for number in range(1000)][-1] == 1998


async def test_items_of_one_key_and_items_beyond_the_bound_go_to_later_batches() -> None:
    doubling = Doubling(max_items=2)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(doubling.batcher.add(n) for n in (1, 1, 2, 3)))
    assert results == [2, 2, 4, 6]
    assert doubling.batches == [[1, 2], [1, 3]]


async def test_an_item_that_cannot_be_run_fails_alone() -> None:
    doubling = Doubling()
    results = await asyncio.gather(
        *(doubling.batcher.add(n) for n in (1, -2, 3)), return_exceptions=True
    )
    assert (results[0], results[2]) == (2, 6)
    assert isinstance(results[1], ValueError)


async def test_an_outage_is_every_callers_and_the_next_batch_is_run() -> None:
    doubling = Doubling()
    results = await asyncio.gather(
        *(doubling.batcher.add(n) for n in (1, 5000)), return_exceptions=True
    )
    assert [type(result) for result in results] == [ConnectionError] * 2
    assert len(doubling.batches) == 1
    assert await doubling.batcher.add(5) == 10


async def test_a_caller_that_is_cancelled_takes_its_item_along() -> None:
    doubling = Doubling()
    doubling.free.clear()
    first = asyncio.create_task(doubling.batcher.add(1))
    await doubling.started.wait()
    second = asyncio.create_task(doubling.batcher.add(2))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    doubling.free.set()
    assert await first == 2
    await doubling.batcher.close()
    assert doubling.batches == [[1]]
