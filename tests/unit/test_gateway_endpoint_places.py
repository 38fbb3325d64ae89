"""Places at endpoints: each caller has a share, and a tenant's requests take turns."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from functions.http_gateway.endpoint_places import EndpointPlaces
from functions.http_gateway.problems import ProblemError


class Taking:
    """Takes places, and notes which have their turn."""

    def __init__(self, most: int) -> None:
        self.places = EndpointPlaces(most)
        self.in_turn: list[str] = []
        self.release = asyncio.Event()

    async def take(
        self, name: str, caller: str, *, takes_turns: bool = True, wait_s: float = 60
    ) -> None:
        async with self.places.take("s", caller, takes_turns=takes_turns, wait_s=wait_s):
            self.in_turn.append(name)
            await self.release.wait()

    async def refusal(self, caller: str, wait_s: float = 60) -> str:
        with pytest.raises(ProblemError) as refused:
            await self.take("refused", caller, wait_s=wait_s)
        return refused.value.code


async def let_all_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_caller_has_three_places_for_each_free_one_and_all_have_the_whole() -> None:
    taking = Taking(8)
    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(taking.take(f"a{number}", "a"))
        await let_all_run()
        assert await taking.refusal("a") == "TOO_MANY_REQUESTS"
        for number in range(2):
            tasks.create_task(taking.take(f"n{number}", ""))
        await let_all_run()
        assert await taking.refusal("b") == "OVERLOADED"
        assert taking.in_turn == ["a0", "n0", "n1"]
        taking.release.set()
    assert len(taking.in_turn) == 8
    async with AsyncExitStack() as stack:
        for number in range(8):
            take = taking.places.take("s", f"c{number}", takes_turns=True, wait_s=60)
            await stack.enter_async_context(take)


@pytest.mark.parametrize(("took_s", "at_work"), [(0.05, 9), (0.2, 4), (1.0, 4)])
async def test_more_of_a_tenants_requests_are_at_an_endpoint_that_answers_quickly(
    took_s: float, at_work: int
) -> None:
    now_s = 0.0
    places = EndpointPlaces(128, lambda: now_s)
    order: list[str] = []
    goes_on = asyncio.Event()

    async def take(name: str) -> None:
        async with places.take("s", "a", takes_turns=True, wait_s=60):
            order.append(name)
            await goes_on.wait()

    async def answer_one_by_one(count: int) -> None:
        nonlocal now_s
        for _ in range(count):
            async with places.take("s", "a", takes_turns=True, wait_s=60):
                now_s += took_s

    async with asyncio.TaskGroup() as tasks:
        async with places.take("s", "a", takes_turns=False, wait_s=60):
            await answer_one_by_one(5)
            for number in range(20):
                tasks.create_task(take(f"a{number}"))
            await let_all_run()
            assert len(order) == at_work
        goes_on.set()
    assert order == [f"a{number}" for number in range(20)]


async def test_a_request_that_is_given_up_leaves_its_turn_to_the_next() -> None:
    taking = Taking(8)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(taking.take("a0", "a"))
        given_up = [tasks.create_task(taking.take(f"a{n}", "a")) for n in (1, 2)]
        tasks.create_task(taking.take("a3", "a"))
        await let_all_run()
        given_up[0].cancel()
        taking.release.set()
        await asyncio.sleep(0)
        given_up[1].cancel()
    assert taking.in_turn[0] == "a0"
    assert taking.in_turn[-1] == "a3"


async def test_who_takes_no_turns_has_all_requests_at_the_endpoint() -> None:
    taking = Taking(8)
    async with asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(taking.take(f"a{number}", "a", takes_turns=False))
        await let_all_run()
        assert taking.in_turn == ["a0", "a1"]
        taking.release.set()


async def test_a_turn_that_does_not_come_ends_the_wait() -> None:
    taking = Taking(8)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(taking.take("a0", "a"))
        await let_all_run()
        assert await taking.refusal("a", wait_s=0.01) == "OVERLOADED"
        taking.release.set()
    assert taking.in_turn == ["a0"]
