"""Window and rate of one endpoint, by their decisions at given times."""

import pytest

from functions.outbound.pace import FIRST_WINDOW, LEAST_RATE, LONGEST_WAIT_S, Pace


def answered(pace: Pace, *, per_s: float, seconds: float, from_s: float = 0.0) -> float:
    """Have requests answered at a rate; return the time after them."""
    for number in range(int(per_s * seconds)):
        pace.begin(from_s + number / per_s)
        pace.end("answered", from_s + number / per_s)
    return from_s + seconds


def test_the_window_begins_small_and_grows_with_each_answer_up_to_its_bound() -> None:
    pace = Pace(32)
    assert pace.window == FIRST_WINDOW
    answered(pace, per_s=10, seconds=1)
    assert pace.window == FIRST_WINDOW + 10
    answered(pace, per_s=100, seconds=1)
    assert pace.window == 32


def test_each_failure_halves_the_window_down_to_one() -> None:
    pace = Pace(32)
    answered(pace, per_s=100, seconds=1)
    windows = []
    for _ in range(7):
        pace.begin(1.0)
        pace.end("failed", 1.0)
        windows.append(pace.window)
    assert windows == [16, 8, 4, 2, 1, 1, 1]


def test_an_endpoint_that_says_it_is_overloaded_gets_half_of_its_rate() -> None:
    pace = Pace(32)
    now_s = answered(pace, per_s=10, seconds=5)
    pace.begin(now_s)
    pace.end("throttled", now_s)
    assert pace.rate == pytest.approx(5.0, rel=0.1)
    taken = sum(pace.take_token(now_s + 0.01 * step) for step in range(100))
    assert taken == pytest.approx(5, abs=1)


def test_throttling_answers_within_one_second_halve_the_rate_once() -> None:
    pace = Pace(32)
    now_s = answered(pace, per_s=10, seconds=5)
    for _ in range(10):
        pace.begin(now_s)
        pace.end("throttled", now_s)
    assert pace.rate == pytest.approx(5.0, rel=0.1)
    pace.begin(now_s + 1)
    pace.end("throttled", now_s + 1)
    assert pace.rate == pytest.approx(2.75, rel=0.1)


def test_the_rate_grows_by_a_share_each_second_until_it_is_unbounded() -> None:
    pace = Pace(32)
    now_s = answered(pace, per_s=10, seconds=5)
    pace.begin(now_s)
    pace.end("throttled", now_s)
    assert pace.take_token(now_s + 4)
    assert pace.rate == pytest.approx(7.0, rel=0.1)
    assert pace.take_token(now_s + 20)
    assert pace.rate is None


def test_an_endpoint_that_throttles_its_first_request_still_gets_some() -> None:
    pace = Pace(32)
    pace.begin(0.0)
    for second in range(10):
        pace.in_flight = 1
        pace.end("throttled", second)
    assert pace.rate is not None
    assert pace.rate >= LEAST_RATE
    assert pace.take_token(9 + 1.1 / LEAST_RATE)


def test_postponed_jobs_come_back_one_after_another_at_the_endpoints_own_speed() -> None:
    pace = Pace(4)
    now_s = answered(pace, per_s=10, seconds=5)
    waits_s = [pace.postpone_s(now_s) for _ in range(100)]
    assert 0.8 <= waits_s[0] <= 1.2
    assert waits_s[99] == pytest.approx(10.0, rel=0.35)


def test_no_postponed_job_waits_longer_than_the_bound() -> None:
    pace = Pace(4)
    assert max(pace.postpone_s(0.0) for _ in range(10_000)) <= LONGEST_WAIT_S * 1.2


def test_as_many_may_wait_as_the_endpoint_answers_within_a_second() -> None:
    pace = Pace(4)
    assert pace.may_wait(3, 0.0)
    assert not pace.may_wait(4, 0.0)
    now_s = answered(pace, per_s=50, seconds=2)
    assert pace.may_wait(45, now_s)
    assert not pace.may_wait(60, now_s)
    pace.begin(now_s)
    pace.end("failed", now_s)
    assert not pace.may_wait(0, now_s)
