"""Idle connections: whose they are, how many are kept, and for how long."""

import asyncio
from collections.abc import AsyncIterator
from typing import TypeAlias

import pytest

from functions.outbound.transport.idle import IdleConnections


class Connection:
    """Open until it is closed."""

    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


Idle: TypeAlias = IdleConnections[str, Connection]


@pytest.fixture
async def idle() -> AsyncIterator[Idle]:
    kept: Idle = IdleConnections(max_idle=3, max_per_key=2)
    yield kept
    kept.close()


async def test_the_last_used_connection_of_a_key_is_used_again(idle: Idle) -> None:
    first, second = Connection(), Connection()
    idle.put("a", first)
    idle.put("a", second)
    assert idle.take("b") is None
    assert (idle.take("a"), idle.take("a"), idle.take("a")) == (second, first, None)
    assert len(idle) == 0


async def test_a_connection_that_was_closed_meanwhile_is_not_handed_out(idle: Idle) -> None:
    sound, closed = Connection(), Connection()
    idle.put("a", sound)
    idle.put("a", closed)
    closed.close()
    assert idle.take("a") is sound
    idle.put("a", closed)
    assert len(idle) == 0


async def test_what_exceeds_a_bound_is_closed_the_longest_idle_first(idle: Idle) -> None:
    of_a, of_b = [Connection() for _ in range(3)], [Connection() for _ in range(2)]
    for connection in of_a:
        idle.put("a", connection)
    for connection in of_b:
        idle.put("b", connection)
    assert [each.is_open for each in of_a] == [False, True, False]
    assert [each.is_open for each in of_b] == [True, True]
    assert len(idle) == 3


async def test_a_connection_that_was_idle_for_long_is_closed() -> None:
    kept: Idle = IdleConnections(idle_s=0.02)
    connection = Connection()
    kept.put("a", connection)
    async with asyncio.timeout(60):
        while connection.is_open:  # noqa: ASYNC110 - the sweep tells nobody
            await asyncio.sleep(0.005)
    assert len(kept) == 0
    kept.close()


async def test_the_end_closes_all(idle: Idle) -> None:
    connection = Connection()
    idle.put("a", connection)
    idle.close()
    assert not connection.is_open
    assert idle.take("a") is None
