"""Ordered functions that may hold few messages at a time: their order is the same."""

from typing import Any

import pytest

from runtime import Context, Retry
from tests.integration.test_ordering import Belt, Watched, belt

__all__ = ["belt"]

RETRY = {"attempts": 4, "delay": "100ms", "factor": 1, "jitter": 0}
ROOM = [
    pytest.param({"max_in_flight": 2}, id="of_one"),
    pytest.param({"max_in_flight": 40, "concurrency": 4}, id="less_than_comes"),
]


@pytest.mark.parametrize("spec", ROOM)
@pytest.mark.parametrize("keys", [1, 30])
async def test_a_failed_message_comes_back_although_those_behind_it_fill_every_place(
    belt: Belt, spec: dict[str, Any], keys: int
) -> None:
    watched = Watched()
    names = [f"key{n}" for n in range(keys)]

    async def act(ctx: Context, event: Any) -> None:
        if int(event.raw) % 4 == 1 and ctx.attempt == 1:
            raise Retry("not yet", delay_s=0.2)
        await watched.work(event, 0)

    async with belt.run(act, retry=RETRY, **spec):
        for _ in range(120 // keys):
            await belt.give(*names)
        await watched.journal.wait(120)

    assert watched.done == belt.given
