"""Priorities: levels take turns by weight, and none of them waits for ever."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.manifest.model import KeySpec, PrioritySpec
from runtime.message import Message
from runtime.queueing.fair_queue import FairQueue
from runtime.queueing.keys import key_of, no_key, priorities_of
from runtime.queueing.weighted_round import WeightedRound

SPEC = PrioritySpec(field="priority", weights={"high": 3, "bulk": 1}, default="bulk")


@dataclass
class Member:
    name: str
    level: int


def _message(sequence: int, priority: str = "", tenant: str = "a") -> Message:
    data = b'{"priority":"%s"}' % priority.encode()
    return Message(f"sms.{tenant}", data, stream="S", sequence=sequence)


def _queue(places: int | None = None) -> FairQueue:
    tenant = key_of(KeySpec(token=2))
    return FairQueue(tenant, places=places, priorities=priorities_of(SPEC))


def _take_all(queue: FairQueue) -> list[int]:
    taken = []
    while queue:
        shown = queue[0].sequence
        taken.append(queue.popleft().sequence)
        assert shown == taken[-1]
    return taken


def test_high_comes_before_bulk_by_the_weights_and_bulk_is_not_starved() -> None:
    queue = _queue()
    for number in range(1, 7):
        queue.append(_message(number, "bulk"))
    for number in range(7, 14):
        queue.append(_message(number, "high"))

    assert _take_all(queue) == [7, 8, 9, 1, 10, 11, 12, 2, 13, 3, 4, 5, 6]


def test_a_message_of_no_known_level_has_the_default() -> None:
    queue = _queue()
    queue.append(_message(1, "urgent!!"))
    queue.append(Message("sms.a", b"not json", stream="S", sequence=2))
    queue.append(_message(3, "high"))

    assert _take_all(queue) == [3, 1, 2]


def test_tenants_take_turns_within_a_level() -> None:
    queue = _queue()
    for number in range(1, 5):
        queue.append(_message(number, "high", "loud"))
    queue.append(_message(5, "high", "quiet"))

    assert _take_all(queue) == [1, 5, 2, 3, 4]


def test_each_level_of_a_tenant_has_its_own_share_of_calls() -> None:
    queue = _queue(places=3)
    for number in range(1, 5):
        queue.append(_message(number, "bulk"))
    assert _take_all(queue) == [1, 2]

    queue.append(_message(5, "high"))
    assert _take_all(queue) == [5]


def test_levels_are_told_apart_without_a_fair_key() -> None:
    queue = FairQueue(no_key, priorities=priorities_of(SPEC))
    high, bulk = (queue.fair_key(_message(1, level)) for level in ("high", "bulk"))

    assert queue.level_of(high) == 0
    assert queue.level_of(bulk) == 1
    assert queue.levels == 2
    assert FairQueue(no_key).level_of("anything") == 0


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=8),
    st.data(),
)
def test_every_level_that_waits_gets_its_share_of_every_cycle(
    weights: list[int], data: st.DataObject
) -> None:
    members = WeightedRound[Member](weights)
    for level in range(len(weights)):
        members.append(Member(str(level), level))
    for _ in range(data.draw(st.integers(0, 50))):
        members.append(members.popleft())
    counts: Counter[int] = Counter()
    for _ in range(4 * sum(weights)):
        taken = members.popleft()
        counts[taken.level] += 1
        members.append(taken)

    for level, weight in enumerate(weights):
        assert abs(counts[level] - 4 * weight) <= 1


@given(st.integers(2, 1000))
def test_a_level_that_is_never_empty_is_served_beside_one_that_comes_and_goes(weight: int) -> None:
    members = WeightedRound[Member]([weight, 1])
    members.append(Member("bulk", 1))
    turns = 0
    while True:
        turns += 1
        members.append(Member("high", 0))
        taken = members.popleft()
        if taken.name == "bulk":
            break
    assert turns <= weight + 1


def test_a_member_can_be_removed() -> None:
    members = WeightedRound[Member]([2, 1])
    first, second = Member("first", 0), Member("second", 1)
    members.append(first)
    members.append(second)
    members.remove(first)

    assert members[0] is second
    assert members.popleft() is second
    assert not members
    with pytest.raises(IndexError):
        members.popleft()
