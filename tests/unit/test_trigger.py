# ruff: noqa: E501 - a table of expressions and what they are due at

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.manifest.trigger import Cron, Interval, Trigger

MINUTE = timedelta(minutes=1)
ZONES = ("UTC", "Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca")


def _field(first: int, last: int) -> st.SearchStrategy[str]:
    numbers = st.integers(first, last)
    ranges = st.tuples(numbers, numbers).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.integers(1, last).map(lambda step: f"*/{step}")
    term = st.one_of(numbers.map(str), ranges, steps, st.just("*"))
    return st.lists(term, min_size=1, max_size=2).map(",".join)


# Days up to the 28th, so that every expression is due somewhere.
expressions = st.tuples(
    _field(0, 59), _field(0, 23), _field(1, 28), _field(1, 12), _field(0, 6)
).map(" ".join)
crons = st.builds(Cron, expressions, st.sampled_from(ZONES))
intervals = st.builds(
    Interval, st.one_of(st.integers(1, 10**6).map(float), st.sampled_from([1.5, 90.25]))
)
moments = st.datetimes(
    datetime(2024, 1, 1),  # noqa: DTZ001 - given by `timezones`
    datetime(2028, 1, 1),  # noqa: DTZ001 - given by `timezones`
    timezones=st.just(UTC),
)


@given(st.one_of(crons, intervals), moments)
@example(Cron("*/1 3 4 10 */4", "Australia/Lord_Howe"), datetime(2024, 1, 1, tzinfo=UTC))
def test_the_latest_tick_and_the_next_one_are_neighbours(
    trigger: Trigger, moment: datetime
) -> None:
    latest, following = trigger.latest(moment), trigger.next_after(moment)

    assert latest is not None
    assert following is not None
    assert latest <= moment < following
    assert trigger.next_after(latest) == following
    assert trigger.latest(following) == following
    assert trigger.latest(following - timedelta(microseconds=1)) == latest


@given(expressions, moments)
def test_a_cron_expression_is_due_in_the_minutes_that_its_fields_name(
    expression: str, moment: datetime
) -> None:
    due = set()
    tick = Cron(expression, "UTC").next_after(moment - timedelta(hours=6))
    while tick is not None and tick <= moment:
        due.add(tick)
        tick = Cron(expression, "UTC").next_after(tick)

    minute = (moment - timedelta(hours=6)).replace(second=0, microsecond=0) + MINUTE
    named = set()
    while minute <= moment:
        if _matches(expression, minute):
            named.add(minute)
        minute += MINUTE
    assert due == named


def _matches(expression: str, minute: datetime) -> bool:
    fields = expression.split()
    values = (minute.minute, minute.hour, minute.day, minute.month, minute.isoweekday() % 7)
    firsts, lasts = (0, 0, 1, 1, 0), (59, 23, 31, 12, 7)
    hits = [
        value in _expand(field, first, last)
        for field, value, first, last in zip(fields, values, firsts, lasts, strict=True)
    ]
    # Where neither starts with a star, a day may match by its number or by its name.
    both = fields[2].startswith("*") or fields[4].startswith("*")
    day = (hits[2] and hits[4]) if both else (hits[2] or hits[4])
    return hits[0] and hits[1] and hits[3] and day


def _expand(field: str, first: int, last: int) -> set[int]:
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        low, _, high = span.partition("-")
        whole = range(first, last + 1) if span == "*" else range(int(low), int(high or low) + 1)
        found.update(whole[:: int(step or 1)])
    return found


@pytest.mark.parametrize(
    ("expression", "day", "expected"),
    [
        # The clock goes from 02:00 to 03:00: ticks of the missing hour are due once, at 03:00.
        ("30 2 * * *", "2026-03-29", ["03:00+02:00"]),
        ("0,30 2 * * *", "2026-03-29", ["03:00+02:00"]),
        ("0 2,3 * * *", "2026-03-29", ["03:00+02:00"]),
        ("*/30 1-3 * * *", "2026-03-29", ["01:00+01:00", "01:30+01:00", "03:00+02:00", "03:30+02:00"]),
        # The clock goes from 03:00 back to 02:00: a fixed time is due only the first time.
        ("30 2 * * *", "2026-10-25", ["02:30+02:00"]),
        ("0 2,3 * * *", "2026-10-25", ["02:00+02:00", "03:00+01:00"]),
        ("30 * 25 10 *", "2026-10-25", None),
        ("*/30 2 * * *", "2026-10-25", ["02:00+02:00", "02:30+02:00", "02:00+01:00", "02:30+01:00"]),
        ("15 9 * * *", "2026-07-01", ["09:15+02:00"]),
    ],
)  # fmt: skip
def test_a_change_of_the_clock_neither_drops_nor_doubles_a_fixed_time(
    expression: str, day: str, expected: list[str] | None
) -> None:
    zone = ZoneInfo("Europe/Vienna")
    trigger = Cron(expression, "Europe/Vienna")
    moment = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=zone).astimezone(UTC)
    end = (moment.astimezone(zone) + timedelta(days=1)).astimezone(UTC)
    ticks = []
    tick = trigger.next_after(moment - timedelta(microseconds=1))
    while tick is not None and tick < end:
        ticks.append(tick)
        tick = trigger.next_after(tick)

    if expected is None:  # an interval of an hour goes on: 25 hours, 25 ticks
        assert len(ticks) == 25
        assert {b - a for a, b in itertools.pairwise(ticks)} == {timedelta(hours=1)}
    else:
        found = [tick.astimezone(zone).isoformat(timespec="minutes")[11:] for tick in ticks]
        assert found == expected


def test_a_cron_expression_with_a_rare_day_finds_it_on_both_sides() -> None:
    leap, moment = Cron("0 0 29 2 *", "UTC"), datetime(2026, 11, 21, tzinfo=UTC)
    assert leap.latest(moment) == datetime(2024, 2, 29, tzinfo=UTC)
    assert leap.next_after(moment) == datetime(2028, 2, 29, tzinfo=UTC)
