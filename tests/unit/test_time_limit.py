import asyncio

import pytest

from runtime.call.time_limit import TimeLimit, TimeLimitExceeded

NEVER_S = 3600.0
SHORT_S = 0.01


def deadline(limit: TimeLimit) -> float:
    return asyncio.get_running_loop().time() + limit.limit_s


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_call_in_time_returns_its_result() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    limit = TimeLimit(NEVER_S)
    assert await limit.enforce(answer(), deadline(limit)) == 42
    assert limit.exceeded == 0


async def test_an_overdue_call_is_cancelled_and_its_task_lives_on() -> None:
    limit = TimeLimit(SHORT_S)
    for _ in range(3):
        with pytest.raises(TimeLimitExceeded):
            await limit.enforce(forever(), deadline(limit))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert limit.exceeded == 3


async def test_each_of_several_calls_ends_at_its_own_deadline() -> None:
    limit = TimeLimit(SHORT_S)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    ended: list[int] = []

    async def call(number: int) -> None:
        with pytest.raises(TimeLimitExceeded):
            await limit.enforce(forever(), began_s + SHORT_S * (number + 1))
        assert loop.time() >= began_s + SHORT_S * (number + 1) - 0.002
        ended.append(number)

    await asyncio.gather(*(call(number) for number in range(5)))
    assert ended == [0, 1, 2, 3, 4]


async def test_a_call_behind_one_that_ended_in_time_is_ended_too() -> None:
    limit = TimeLimit(SHORT_S)
    first = asyncio.ensure_future(limit.enforce(asyncio.sleep(0), deadline(limit)))
    second = asyncio.ensure_future(limit.enforce(forever(), deadline(limit)))
    await first
    with pytest.raises(TimeLimitExceeded):
        await second


async def test_a_timeout_of_the_functions_own_is_not_taken_for_the_limit() -> None:
    async def impatient() -> None:
        async with asyncio.timeout(0):
            await forever()

    limit = TimeLimit(NEVER_S)
    with pytest.raises(TimeoutError):
        await limit.enforce(impatient(), deadline(limit))
    assert limit.exceeded == 0


async def test_cancelling_from_outside_stays_a_cancellation() -> None:
    limit = TimeLimit(NEVER_S)
    task = asyncio.ensure_future(limit.enforce(forever(), deadline(limit)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert limit.exceeded == 0


async def test_cancelling_from_outside_wins_over_the_limit() -> None:
    limit = TimeLimit(SHORT_S)
    reached = asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await forever()
        finally:
            reached.set()
            await asyncio.sleep(0)

    task = asyncio.ensure_future(limit.enforce(slow_to_end(), deadline(limit)))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_function_that_outlives_its_cancellation_keeps_its_outcome() -> None:
    async def stubborn() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            return "done all the same"
        raise AssertionError

    async def failing() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise ValueError("another") from None

    limit = TimeLimit(SHORT_S)
    assert await limit.enforce(stubborn(), deadline(limit)) == "done all the same"
    with pytest.raises(ValueError, match="another"):
        await limit.enforce(failing(), deadline(limit))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
