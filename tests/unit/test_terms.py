"""Terms of subscriptions, by the calendar."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from functions.domain.terms import Term, add_term

DAY = datetime(2026, 1, 31, 8, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("term", "end"),
    [
        ("P1D", datetime(2026, 2, 1, 8, 30, tzinfo=UTC)),
        ("P2W", datetime(2026, 2, 14, 8, 30, tzinfo=UTC)),
        ("P1M", datetime(2026, 2, 28, 8, 30, tzinfo=UTC)),
        ("P25M", datetime(2028, 2, 29, 8, 30, tzinfo=UTC)),
        ("P1Y", datetime(2027, 1, 31, 8, 30, tzinfo=UTC)),
        ("P1Y6M", datetime(2027, 7, 31, 8, 30, tzinfo=UTC)),
        ("P1M1D", datetime(2026, 3, 1, 8, 30, tzinfo=UTC)),
        ("P0D", DAY),
    ],
)
def test_a_term_ends_by_the_calendar(term: str, end: datetime) -> None:
    assert add_term(DAY, TypeAdapter(Term).validate_python(term)) == end


@pytest.mark.parametrize(
    "text", ["", "P", "1Y", "P1", "PY", "P1H", "PT1H", "P-1D", "P1D1Y", "P1Y1Y", "P1.5Y", "p1y"]
)
def test_any_other_text_is_no_term(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Term).validate_python(text)
    with pytest.raises(ValueError, match="not a term"):
        add_term(DAY, text)


@example(datetime(9944, 3, 10, tzinfo=UTC), (41, 68, 477, 0))
@given(
    st.datetimes(datetime(2000, 1, 1), datetime(9998, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
    st.tuples(st.integers(0, 99), st.integers(0, 999), st.integers(0, 999), st.integers(0, 9999)),
)
def test_a_longer_term_never_ends_earlier(start: datetime, parts: tuple[int, ...]) -> None:
    years, months, weeks, days = parts
    try:
        end = add_term(start, f"P{years}Y{months}M{weeks}W{days}D")
    except ValueError as refused:
        assert "too late" in str(refused)  # noqa: PT017 - most terms end in time
        return
    longer = add_term(end, "P1D") if end.year < 9998 else end + timedelta(days=1)
    assert start <= end < longer
    assert abs((end - start).days - (years * 365.25 + months * 30.44 + weeks * 7 + days)) < 33


@given(st.integers(0, 400))
def test_as_many_days_as_weeks_have_are_the_same(weeks: int) -> None:
    assert add_term(DAY, f"P{weeks}W") == add_term(DAY, f"P{weeks * 7}D")
