"""When an endpoint that only fails is disabled, and when its tenant is told."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.route_delivery.health import (
    FailureHour,
    Health,
    Rules,
    Verdict,
    find_clock_start,
    judge,
    percent_of_the_way,
    state_of,
)

T0 = datetime(2026, 8, 1, tzinfo=UTC)
RULES = Rules()


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def by_hour(failures: Sequence[datetime]) -> list[FailureHour]:
    """The failures as the database keeps them."""
    found: dict[datetime, list[datetime]] = {}
    for failed_at in sorted(failures):
        hour = failed_at.replace(minute=0, second=0, microsecond=0)
        found.setdefault(hour, []).append(failed_at)
    return [FailureHour(len(each), each[0], each[-1]) for each in found.values()]


def clock_start(*hours: float) -> datetime | None:
    failures = [at(each) for each in hours]
    return find_clock_start(by_hour(failures), failures[0], RULES)


def failing(last: float, *, clock: float | None = 12.0, told: int = 0) -> Health:
    """An endpoint that failed from hour 0 to hour `last`."""
    return Health(
        failing_since=at(0),
        last_failure_at=at(last),
        clock_started_at=None if clock is None else at(clock),
        told_percent=told,
    )


def test_failures_of_less_than_twelve_hours_start_no_clock() -> None:
    assert clock_start(*range(12)) is None


def test_the_clock_starts_with_the_failure_that_is_twelve_hours_after_the_first() -> None:
    assert clock_start(0, 6, 12, 18) == at(12)


def test_two_failures_are_not_several() -> None:
    assert clock_start(0, 12) is None


def test_failures_that_are_more_than_a_day_apart_start_no_clock() -> None:
    assert clock_start(0, 25, 50, 75) is None


def test_a_later_day_may_start_the_clock() -> None:
    assert clock_start(0, 48, 54, 60) == at(60)


def test_failures_before_a_success_in_the_same_hour_do_not_count() -> None:
    hours = by_hour([at(0), at(0.1), at(0.2), at(12.5)])
    assert find_clock_start(hours, at(0.2), RULES) is None
    assert find_clock_start(hours, at(0.1), RULES) == at(12.5)


@pytest.mark.parametrize(
    ("passed_days", "told", "expected"),
    [
        (2.4, 0, (48, None, False)),
        (2.5, 0, (50, 50, False)),
        (2.6, 50, (52, None, False)),
        (3.5, 50, (70, 70, False)),
        (4.5, 70, (90, 90, False)),
        (4.5, 50, (90, 90, False)),
        (5.0, 90, (100, 100, True)),
        (9.0, 0, (100, 100, True)),
    ],
)
def test_each_threshold_is_told_once_and_the_last_one_disables(
    passed_days: float, told: int, expected: tuple[int, int | None, bool]
) -> None:
    verdict = judge(failing(12 + 24 * passed_days, told=told), [], RULES)
    assert (verdict.percent, verdict.tell_percent, verdict.disables) == expected
    assert verdict.clock_started_at == at(12)
    assert not verdict.recovers


def test_an_endpoint_without_attempts_comes_no_nearer_to_being_disabled() -> None:
    health = failing(12 + 24)
    assert judge(health, [], RULES).percent == percent_of_the_way(health, RULES) == 20


def test_a_success_is_told_only_if_failures_were() -> None:
    healthy = Health(last_success_at=at(30))
    assert judge(healthy, [], RULES) == Verdict()
    assert judge(replace(healthy, told_percent=50), [], RULES) == Verdict(recovers=True)


def test_a_success_between_two_judgements_begins_the_count_anew() -> None:
    health = Health(
        failing_since=at(80),
        last_failure_at=at(81),
        last_success_at=at(79),
        told_percent=70,
    )
    assert judge(health, by_hour([at(80), at(81)]), RULES) == Verdict(recovers=True)


def test_a_disabled_endpoint_recovers_by_a_success_after_it() -> None:
    health = replace(failing(140), disabled_at=at(141), told_percent=100)
    assert judge(health, [], RULES).recovers is False
    assert judge(replace(health, last_success_at=at(140)), [], RULES).recovers is False
    recovered = judge(replace(health, last_success_at=at(150)), [], RULES)
    assert recovered == Verdict(recovers=True)


def test_a_person_sees_four_states() -> None:
    assert state_of(Health()) == "unknown"
    assert state_of(Health(last_success_at=at(0))) == "healthy"
    assert state_of(failing(1)) == "failing"
    assert state_of(replace(failing(1), disabled_at=at(2))) == "disabled"
    assert percent_of_the_way(replace(failing(1), disabled_at=at(2)), RULES) == 100


def _exact_start(failures: Sequence[datetime], within: timedelta) -> datetime | None:
    for place, last in enumerate(failures):
        seen = [each for each in failures[: place + 1] if each >= last - within]
        if len(seen) >= RULES.least_failures and last - seen[0] >= RULES.span:
            return last
    return None


FAILURES = st.lists(st.integers(0, 6 * 24 * 60), min_size=1, max_size=40, unique=True).map(
    lambda minutes: [T0 + timedelta(minutes=each) for each in sorted(minutes)]
)


@given(FAILURES)
def test_the_clock_never_starts_early_and_at_most_an_hour_late(failures: list[datetime]) -> None:
    found = find_clock_start(by_hour(failures), failures[0], RULES)
    exact = _exact_start(failures, RULES.within)
    surely = _exact_start(failures, RULES.within - timedelta(hours=1))
    if found is not None:
        assert exact is not None
        assert found >= exact
    if surely is not None:
        assert found is not None
        assert found <= surely + timedelta(hours=1)


@given(FAILURES, st.integers(0, 100))
def test_no_endpoint_is_disabled_before_five_days_after_twelve_hours(
    failures: list[datetime], told: int
) -> None:
    health = Health(failures[0], failures[-1], told_percent=told)
    verdict = judge(health, by_hour(failures), RULES)
    if verdict.disables:
        assert failures[-1] - failures[0] >= RULES.span + RULES.disable_after
    assert 0 <= verdict.percent <= 100
