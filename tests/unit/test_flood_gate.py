import asyncio
from collections.abc import Hashable

import pytest

from runtime.observe import flood_gate
from runtime.observe.flood_gate import LINES, MOST_KINDS, FloodGate


class Summaries:
    """Records the summaries of a gate."""

    def __init__(self) -> None:
        self.sums: list[tuple[Hashable, int]] = []
        self.changed = asyncio.Event()

    def __call__(self, kind: Hashable, held_back: int) -> None:
        self.sums.append((kind, held_back))
        self.changed.set()


async def test_the_first_lines_of_a_kind_pass_and_the_others_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flood_gate, "WINDOW_S", 0.05)
    told = Summaries()
    gate = FloodGate(told)

    passed = [gate.admits("a") for _ in range(100)]
    async with asyncio.timeout(60):
        await told.changed.wait()

    assert passed.count(True) == LINES
    assert told.sums == [("a", 100 - LINES)]
    assert gate.admits("a"), "the next window has begun"


async def test_kinds_do_not_hold_each_other_back() -> None:
    gate = FloodGate(Summaries())
    for _ in range(100):
        gate.admits("a")

    assert gate.admits("b")


async def test_a_flush_logs_the_count_so_far_once() -> None:
    told = Summaries()
    gate = FloodGate(told)
    for _ in range(10):
        gate.admits("a")
    gate.admits("b")

    gate.flush()
    gate.flush()

    assert told.sums == [("a", 10 - LINES)]


async def test_the_memory_for_kinds_is_bounded() -> None:
    told = Summaries()
    gate = FloodGate(told)

    passed = sum(gate.admits(number) for number in range(10_000))
    gate.flush()

    assert passed == MOST_KINDS + LINES
    assert sum(count for _, count in told.sums) == 10_000 - passed
