"""Where each part of a range of buckets is read from."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from functions.management.bucket_sources import (
    WIDTHS,
    Level,
    Span,
    ceil,
    floor,
    merge,
    plan_sources,
    subtract,
)

DAY = datetime(2026, 11, 20, tzinfo=UTC)


def span(first: float, last: float) -> Span:
    """A span by hours after midnight."""
    return Span(DAY + timedelta(hours=first), DAY + timedelta(hours=last))


def test_days_without_marks_are_read_as_days() -> None:
    assert plan_sources(span(0, 72), "day", {}) == ([span(0, 72)], [], [], [])


def test_around_a_marked_minute_each_part_is_read_as_coarsely_as_it_is_right() -> None:
    minute = Span(DAY + timedelta(hours=30, minutes=5), DAY + timedelta(hours=30, minutes=6))
    found = plan_sources(span(0, 72), "day", {"minute": [minute]})
    assert found.days == [span(0, 24), span(48, 72)]
    assert found.hours == [span(24, 30), span(31, 48)]
    assert found.minutes == [
        Span(span(30, 31).from_at, minute.from_at),
        Span(minute.to_at, span(31, 31).to_at),
    ]
    assert found.rows == [minute]


def test_a_marked_hour_is_read_from_its_minutes_and_a_marked_day_from_its_hours() -> None:
    marked: dict[Level, list[Span]] = {"hour": [span(1, 2)], "day": [span(24, 48)]}
    found = plan_sources(span(0, 72), "day", marked)
    assert found == ([span(48, 72)], [span(0, 1), span(2, 48)], [span(1, 2)], [])


def test_hours_are_never_read_from_days_nor_minutes_from_hours() -> None:
    assert plan_sources(span(0, 24), "hour", {}) == ([], [span(0, 24)], [], [])
    assert plan_sources(span(0, 24), "minute", {}) == ([], [], [span(0, 24)], [])
    assert plan_sources(span(0, 24), "hour", {"day": [span(0, 24)]}).hours == [span(0, 24)]


@pytest.mark.parametrize("seed", range(20))
def test_the_sources_are_the_range_once_and_no_stale_bucket_is_read(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - a repeatable choice
    levels: tuple[Level, ...] = ("minute", "hour", "day")
    marked: dict[Level, list[Span]] = {}
    for level in levels:
        width = WIDTHS[level]
        begins = [
            floor(DAY + timedelta(hours=rng.uniform(-5, 80)), width)
            for _ in range(rng.randrange(6))
        ]
        marked[level] = [Span(begin, begin + width * rng.randint(1, 3)) for begin in begins]
    level = rng.choice(levels)
    wanted = span(0, 72)
    sources = plan_sources(wanted, level, marked)
    every = [each for part in sources for each in part]
    assert merge(every) == [wanted]
    assert sum((each.to_at - each.from_at for each in every), timedelta()) == timedelta(hours=72)
    stale = merge(marked["minute"])
    assert subtract(sources.minutes, stale) == sources.minutes
    stale = merge([*stale, *marked["hour"]])
    assert subtract(sources.hours, stale) == sources.hours
    stale = merge([*stale, *marked["day"]])
    assert subtract(sources.days, stale) == sources.days
    for part, width in zip(
        sources[:3], (WIDTHS["day"], WIDTHS["hour"], WIDTHS["minute"]), strict=True
    ):
        assert all(floor(time, width) == time for each in part for time in each)


def test_a_time_is_rounded_to_the_bucket_around_it() -> None:
    time = DAY + timedelta(hours=1, minutes=2, microseconds=3)
    assert floor(time, WIDTHS["hour"]) == DAY + timedelta(hours=1)
    assert ceil(time, WIDTHS["hour"]) == DAY + timedelta(hours=2)
    assert floor(DAY, WIDTHS["day"]) == ceil(DAY, WIDTHS["day"]) == DAY
    assert floor(datetime(1971, 3, 1, 5, tzinfo=UTC), WIDTHS["day"]).hour == 0
