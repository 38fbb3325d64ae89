"""Tells cancellations of a call by the host from those by the function."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from runtime.call.call_task import EndedItself, create_call_task
from runtime.call.time_limit import TimeLimit, TimeLimitExceeded

NEVER_S = 3600.0


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


def own_task() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def cancels_itself() -> None:
    own_task().cancel()
    await forever()


async def cancels_itself_and_returns() -> None:
    own_task().cancel()


async def is_cancelled_by_its_child() -> None:
    parent = own_task()

    async def child() -> None:
        parent.cancel()

    task = asyncio.create_task(child())
    await forever()
    await task


async def is_cancelled_by_its_timer() -> None:
    asyncio.get_running_loop().call_soon(own_task().cancel)
    await forever()


async def raises_a_cancellation() -> None:
    raise asyncio.CancelledError


CANCELS = [
    cancels_itself,
    cancels_itself_and_returns,
    is_cancelled_by_its_child,
    is_cancelled_by_its_timer,
    raises_a_cancellation,
]


async def enforce(call: Callable[[], Awaitable[object]], limit_s: float = NEVER_S) -> object:
    limit = TimeLimit(limit_s)
    return await limit.enforce(call(), asyncio.get_running_loop().time() + limit_s)


@pytest.mark.parametrize("call", CANCELS)
async def test_a_function_that_cancels_its_own_task_fails_and_the_task_lives_on(
    call: Callable[[], Awaitable[object]],
) -> None:
    async def work() -> str:
        for _ in range(3):
            with pytest.raises(EndedItself):
                await enforce(call)
        await asyncio.sleep(0)
        assert own_task().cancelling() == 0
        return "alive"

    assert await create_call_task(work()) == "alive"


async def test_a_cancellation_that_the_function_takes_back_has_no_effect() -> None:
    async def act() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await forever()
        with pytest.raises(ExceptionGroup):
            await fail_in_a_group()
        return "done"

    async def fail_in_a_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(NEVER_S))
            group.create_task(fail())

    async def fail() -> None:
        raise ValueError

    async def work() -> object:
        return await enforce(act)

    task = create_call_task(work())
    assert await task == "done"
    assert task.own_cancels == 0


async def test_a_host_that_cancels_after_the_function_did_ends_the_task() -> None:
    began = asyncio.Event()

    async def act() -> None:
        own_task().cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            began.set()
            await forever()

    task = create_call_task(enforce(act))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("returns", [True, False])
async def test_a_function_that_swallows_the_host_s_cancellation_keeps_its_outcome_and_no_task(
    returns: bool,
) -> None:
    began = asyncio.Event()
    outcomes: list[object] = []

    async def act() -> str:
        began.set()
        try:
            await forever()
        except asyncio.CancelledError:
            if not returns:
                raise ValueError("instead") from None
        return "done"

    async def work() -> None:
        while True:
            try:
                outcomes.append(await enforce(act))
            except ValueError as failure:
                outcomes.append(str(failure))
            await forever()

    task = create_call_task(work())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert outcomes == ["done" if returns else "instead"]


async def test_the_time_limit_ends_a_function_that_cancelled_itself_before() -> None:
    async def act() -> None:
        own_task().cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            await forever()

    async def work() -> str:
        with pytest.raises(TimeLimitExceeded):
            await enforce(act, 0.01)
        assert own_task().cancelling() == 0
        return "alive"

    assert await create_call_task(work()) == "alive"


async def test_a_closed_coroutine_ends_silently() -> None:
    async def work() -> None:
        await enforce(forever)

    coroutine = work()
    coroutine.send(None)
    coroutine.close()
