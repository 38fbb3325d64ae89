"""Marks of new telemetry rows."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from functions.domain.rollup_marks import Mark, marks_of

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Row(NamedTuple):
    time: datetime
    tenant_id: str
    device_id: str


def row(seconds: float, tenant: str = "t", device: str = "d") -> Row:
    return Row(NOON + timedelta(seconds=seconds), tenant, device)


def at(minutes: int) -> datetime:
    return NOON + timedelta(minutes=minutes)


def test_the_rows_of_a_minute_have_one_mark_for_each_tenant() -> None:
    marks = marks_of([row(1), row(59.999999), row(2, device="e"), row(3, tenant="u")])
    found = [
        mark._replace(device_ids=",".join(sorted(mark.device_ids.split(",")))) for mark in marks
    ]
    assert found == [Mark("t", "d,e", at(0), at(1)), Mark("u", "d", at(0), at(1))]


def test_a_mark_reaches_from_the_first_to_the_last_minute_of_an_hour() -> None:
    assert marks_of([row(3599), row(60), row(600)]) == [Mark("t", "d", at(1), at(60))]


def test_rows_of_two_hours_have_two_marks() -> None:
    marks = marks_of([row(-1), row(0), row(-60), row(61, device="e")])
    assert {mark.from_at: (mark.to_at, set(mark.device_ids.split(","))) for mark in marks} == {
        at(-1): (at(0), {"d"}),
        at(0): (at(2), {"d", "e"}),
    }
