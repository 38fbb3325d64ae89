"""Threads of plain functions, also when calls that never end have used all of them."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator

import pytest

from runtime.call import threads
from runtime.call.threads import FunctionThreads
from tests.support.host import Journal


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FunctionThreads]:
    monkeypatch.setattr(threads, "SPARE", 1)
    made = FunctionThreads("slow", 1)
    yield made
    made.shutdown()


async def test_a_pool_makes_as_many_threads_as_it_may_and_then_has_no_room(
    pool: FunctionThreads,
) -> None:
    release = threading.Event()
    loop = asyncio.get_running_loop()

    assert pool.has_room
    calls = [loop.run_in_executor(pool, release.wait) for _ in range(2)]
    assert not pool.has_room
    release.set()
    await asyncio.gather(*calls)
    await pool.wait_for_thread()
    assert pool.has_room


async def test_a_waiting_call_gets_the_thread_that_another_call_leaves(
    pool: FunctionThreads,
) -> None:
    releases = [threading.Event() for _ in range(4)]
    loop = asyncio.get_running_loop()
    begun = Journal()

    async def call(number: int) -> None:
        await pool.wait_for_thread()
        begun.add(number)
        await loop.run_in_executor(pool, releases[number].wait)

    calls = [asyncio.create_task(call(number)) for number in range(4)]
    for number in range(4):
        await begun.wait(min(4, 2 + number))
        if number == 3:
            await (
                pool.wait_for_thread()
            )  # The thread of the call before is idle only a moment later.
        assert pool.has_room == (number == 3)
        releases[number].set()
        await calls[number]

    assert begun.entries == [0, 1, 2, 3]


async def test_calls_that_are_queued_all_the_same_are_counted(pool: FunctionThreads) -> None:
    release = threading.Event()
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(pool, release.wait) for _ in range(5)]

    release.set()
    await asyncio.gather(*calls)
    await pool.wait_for_thread()
    again = threading.Event()
    held = [loop.run_in_executor(pool, again.wait) for _ in range(2)]
    assert not pool.has_room
    again.set()
    await asyncio.gather(*held)


async def test_a_call_that_outlives_its_loop_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "SPARE", 0)
    release = threading.Event()
    ran: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def hang() -> None:
        ran.put(threading.current_thread())
        release.wait()

    async def main() -> None:
        FunctionThreads("slow", 1).submit(hang)

    await asyncio.to_thread(asyncio.run, main())
    release.set()
    ran.get(timeout=5).join(0.2)  # An exception in the thread would fail this test.
