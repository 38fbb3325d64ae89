"""A tenant's rate: exact over time, whoever asks and in whatever order."""

import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.messages.tenant_rate import RateLimit, RateState, decide


@dataclass(order=True)
class Coming:
    at_s: float
    number: int
    is_high: bool = field(compare=False)
    come_back_at_s: float | None = field(default=None, compare=False)


def simulate(limit: RateLimit, arrivals: list[tuple[float, bool]]) -> tuple[dict[int, float], int]:
    """When each message is sent, and how often messages were sent away."""
    line = [Coming(at_s, number, high) for number, (at_s, high) in enumerate(arrivals)]
    heapq.heapify(line)
    state, sent, waits = RateState(), {}, 0
    while line:
        one = heapq.heappop(line)
        decision = decide(
            limit, state, one.at_s, is_high=one.is_high, come_back_at_s=one.come_back_at_s
        )
        state = decision.state
        if not decision.wait_s:
            sent[one.number] = one.at_s
            continue
        waits += 1
        assert waits < 50 * len(arrivals)
        one.at_s += decision.wait_s
        one.come_back_at_s = one.at_s
        heapq.heappush(line, one)
    return sent, waits


def test_a_burst_goes_at_once_and_the_rest_in_its_order_at_the_rate() -> None:
    sent, waits = simulate(RateLimit(10, 5), [(0.0, False)] * 25)

    times = [sent[number] for number in range(25)]
    assert times[:5] == [0.0] * 5
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2.0, abs=0.2)
    assert waits <= 60


def test_a_message_within_the_rate_never_waits() -> None:
    sent, waits = simulate(RateLimit(10, 1), [(number * 0.1 + 1, False) for number in range(50)])

    assert waits == 0
    assert len(sent) == 50


def test_high_priority_does_not_wait_behind_the_tenant_s_own_bulk() -> None:
    arrivals = [(0.0, False)] * 1000 + [(10.0 + number, True) for number in range(20)]
    sent, _ = simulate(RateLimit(10, 10), arrivals)

    assert max(sent[number] - arrivals[number][0] for number in range(1000, 1020)) < 0.3
    assert max(sent.values()) == pytest.approx(101, abs=2)


@given(
    st.floats(0.5, 200),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 20), st.booleans()), min_size=1, max_size=150),
)
def test_in_no_stretch_of_time_more_is_sent_than_the_rate_and_every_message_is_sent(
    per_s: float, burst: int, arrivals: list[tuple[float, bool]]
) -> None:
    sent, _ = simulate(RateLimit(per_s, burst), arrivals)
    times = sorted(sent.values())

    assert len(times) == len(arrivals)
    # One token in advance for high priority.
    for first, at_s in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + 1 + (times[last] - at_s) * per_s + 1e-6


def test_a_message_that_comes_too_early_waits_for_the_rest_of_its_time() -> None:
    state = RateState(others_until_s=140.0)
    decision = decide(RateLimit(1, 1), state, 100.0, is_high=False, come_back_at_s=130.0)

    assert decision.wait_s == 30.0
    assert decision.state == state


def test_a_state_of_a_slower_rate_does_not_hold_up_a_faster_one() -> None:
    state = RateState(due_at_s=1_000_000.0)
    decision = decide(RateLimit(10, 1), state, 0.0, is_high=False, come_back_at_s=None)

    assert decision.wait_s < 1
