"""Steps of concurrent batches follow one another, whatever becomes of a batch."""

import asyncio

import pytest

from functions.ingest.turns import Turns

pytestmark = pytest.mark.asyncio


async def test_turns_are_reached_in_the_order_in_which_they_were_entered() -> None:
    turns, order = Turns(), []
    go = [asyncio.Event() for _ in range(3)]

    async def step(number: int) -> None:
        with turns.enter() as turn:
            await go[number].wait()
            await turn.reached()
            order.append(number)

    tasks = [asyncio.create_task(step(number)) for number in range(3)]
    await asyncio.sleep(0)
    for number in (2, 1, 0):
        go[number].set()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]


async def test_a_turn_that_is_given_up_lets_nobody_overtake_those_before_it() -> None:
    turns = Turns()
    first, second, third = turns.enter(), turns.enter(), turns.enter()
    waiting = asyncio.create_task(second.reached())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    second.leave()
    last = asyncio.create_task(third.reached())
    await asyncio.sleep(0)
    assert not last.done()
    first.leave()
    await asyncio.wait_for(last, 10)


async def test_a_turn_that_fails_ends_for_those_after_it() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="wrong"), turns.enter():
        raise ValueError("wrong")
    with turns.enter() as turn:
        await asyncio.wait_for(turn.reached(), 10)


async def test_a_turn_may_be_left_before_the_end_of_its_block() -> None:
    turns = Turns()
    with turns.enter() as turn:
        turn.leave()
        await asyncio.wait_for(turns.enter().reached(), 10)
