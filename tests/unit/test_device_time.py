"""The time that a device writes into its message."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.domain.device_time import (
    MAX_AHEAD_NS,
    MAX_BEHIND_NS,
    as_time,
    read_device_time_ns,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 1_000_000_000
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("written", "time"),
    [
        ("2026-03-01T11:00:00Z", NOW - HOUR),
        ("2026-03-01T12:00:00.25+01:00", NOW - HOUR + timedelta(milliseconds=250)),
        ((NOW - HOUR).timestamp(), NOW - HOUR),
        (int((NOW - HOUR).timestamp()), NOW - HOUR),
        (int((NOW - HOUR).timestamp() * 1e3), NOW - HOUR),
        (int((NOW - HOUR).timestamp() * 1e6), NOW - HOUR),
        (int((NOW - HOUR).timestamp()) * 1_000_000_000, NOW - HOUR),
        (NOW_NS + MAX_AHEAD_NS, NOW + timedelta(minutes=5)),
        (NOW_NS - MAX_BEHIND_NS, NOW - timedelta(days=400)),
    ],
)
def test_text_and_numbers_of_every_unit_are_read(written: Any, time: datetime) -> None:
    found = read_device_time_ns(written, NOW_NS)
    assert found is not None
    assert as_time(found) == time


@pytest.mark.parametrize(
    "written",
    [
        *(None, True, "", "now", "2026-03-01", "2026-03-01T12:00:00", "12:00Z", [], {}),
        *(0, -1, 1, 946_684_800, "1970-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00"),
        *("9999-12-31T23:59:59-14:00", "2026-03-01T11:00:00Z" + " " * 100, 2**63, 1e308),
        *(NOW_NS + MAX_AHEAD_NS + 1000, NOW_NS - MAX_BEHIND_NS - 1000),
        *(float("nan"), float("inf")),
    ],
)
def test_nonsense_counts_as_no_time(written: Any) -> None:
    assert read_device_time_ns(written, NOW_NS) is None


@given(st.one_of(st.text(), st.integers(), st.floats(), st.datetimes().map(datetime.isoformat)))
def test_whatever_is_written_is_a_time_within_bounds_or_none(written: Any) -> None:
    found = read_device_time_ns(written, NOW_NS)
    assert found is None or -MAX_AHEAD_NS <= NOW_NS - found <= MAX_BEHIND_NS
    if found is not None:
        as_time(found)


@given(st.integers(-MAX_BEHIND_NS // 1000, MAX_AHEAD_NS // 1000))
def test_a_time_is_read_back_to_the_microsecond(offset_us: int) -> None:
    time = NOW + timedelta(microseconds=offset_us)
    for written in (time.isoformat(), NOW_NS + offset_us * 1000, NOW_NS // 1000 + offset_us):
        found = read_device_time_ns(written, NOW_NS)
        assert found is not None
        assert as_time(found) == time
