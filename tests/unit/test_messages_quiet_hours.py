"""Quiet hours: windows over midnight, days, zones, and the two days on which clocks change."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.messages.quiet_hours import QuietHours, quiet_until

VIENNA = ZoneInfo("Europe/Vienna")
NIGHT = QuietHours(VIENNA, time(22), time(7))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def until(hours: QuietHours, now: str, *, is_high: bool = False) -> str | None:
    found = quiet_until([hours], utc(now), is_high=is_high)
    return None if found is None else found.strftime("%Y-%m-%dT%H:%M")


@pytest.mark.parametrize(
    ("now", "end"),
    [
        ("2026-07-01T19:59", None),  # 21:59 in summer
        ("2026-07-01T20:00", "2026-07-02T05:00"),
        ("2026-07-02T04:59", "2026-07-02T05:00"),
        ("2026-07-02T05:00", None),
        ("2026-01-01T20:59", None),  # 21:59 in winter
        ("2026-01-01T21:00", "2026-01-02T06:00"),
    ],
)
def test_a_night_waits_until_the_morning_of_its_zone(now: str, end: str | None) -> None:
    assert until(NIGHT, now) == end


def test_the_night_in_which_the_clock_is_put_forward_is_an_hour_shorter() -> None:
    assert until(NIGHT, "2026-03-28T21:00") == "2026-03-29T05:00"


def test_the_night_in_which_the_clock_is_put_back_is_an_hour_longer() -> None:
    assert until(NIGHT, "2026-10-24T20:00") == "2026-10-25T06:00"


def test_a_window_that_ends_in_the_hour_that_comes_twice_ends_at_the_second() -> None:
    hours = QuietHours(VIENNA, time(1), time(2, 30))

    assert until(hours, "2026-10-25T00:45") == "2026-10-25T01:30"  # 02:45 of the first time
    assert until(hours, "2026-10-25T01:29") == "2026-10-25T01:30"
    assert until(hours, "2026-10-25T01:30") is None


def test_a_window_that_ends_in_the_hour_that_is_skipped_ends_when_that_would_have_been() -> None:
    hours = QuietHours(VIENNA, time(1), time(2, 30))

    assert until(hours, "2026-03-29T00:30") == "2026-03-29T01:30"
    assert until(hours, "2026-03-29T01:30") is None  # 03:30


def test_a_window_that_starts_in_the_hour_that_is_skipped_starts_when_that_would_have_been() -> (
    None
):
    hours = QuietHours(VIENNA, time(2, 30), time(5))

    assert until(hours, "2026-03-29T01:29") is None
    assert until(hours, "2026-03-29T01:30") == "2026-03-29T03:00"


def test_equal_times_are_a_whole_day_and_days_follow_one_another() -> None:
    weekend = QuietHours(VIENNA, time(0), time(0), frozenset({5, 6}))

    assert until(weekend, "2026-07-03T21:59") is None  # Friday
    assert until(weekend, "2026-07-04T10:00") == "2026-07-05T22:00"  # Saturday
    assert until(weekend, "2026-07-05T22:00") is None  # Monday


def test_a_window_belongs_to_the_day_on_which_it_begins() -> None:
    friday_night = QuietHours(VIENNA, time(22), time(7), frozenset({4}))

    assert until(friday_night, "2026-07-04T03:00") == "2026-07-04T05:00"
    assert until(friday_night, "2026-07-04T21:00") is None


def test_the_message_waits_until_no_quiet_hours_are_in_force() -> None:
    sunday = QuietHours(VIENNA, time(0), time(0), frozenset({6}))
    found = quiet_until([NIGHT, sunday], utc("2026-07-04T23:00"), is_high=False)

    assert found == utc("2026-07-06T05:00")


def test_high_priority_passes_where_the_quiet_hours_say_so() -> None:
    passing = QuietHours(VIENNA, time(22), time(7), high_passes=True)

    assert until(passing, "2026-07-01T21:00", is_high=True) is None
    assert until(passing, "2026-07-01T21:00") is not None
    assert until(NIGHT, "2026-07-01T21:00", is_high=True) is not None


def test_quiet_hours_of_every_day_and_hour_do_not_wait_for_ever() -> None:
    always = QuietHours(VIENNA, time(0), time(0))
    found = quiet_until([always], utc("2026-07-01T12:00"), is_high=False)

    assert found is not None
    assert found - utc("2026-07-01T12:00") < timedelta(days=9)


@given(
    st.datetimes(utc("2020-01-01").replace(tzinfo=None), utc("2030-01-01").replace(tzinfo=None)),
    st.sampled_from(["Europe/Vienna", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]),
    st.times(),
    st.times(),
)
def test_after_the_wait_no_window_is_in_force(
    now: datetime, zone: str, starts: time, ends: time
) -> None:
    hours = QuietHours(ZoneInfo(zone), starts, ends, frozenset({0, 2, 4}))
    at = now.replace(tzinfo=UTC)
    found = quiet_until([hours], at, is_high=False)

    if found is not None:
        assert at < found <= at + timedelta(days=1, hours=2)
        assert hours.end_of(found) is None
