"""Terms of subscriptions in years, months, weeks and days: `P1Y`, `P1M15D`."""

import calendar
import re
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

LAST_YEAR = 9998
_MONTHS = 12
# The date part of a duration as ISO 8601 writes it.
_TERM = re.compile(
    r"P(?=[0-9])(?:([0-9]{1,2})Y)?(?:([0-9]{1,3})M)?(?:([0-9]{1,3})W)?(?:([0-9]{1,4})D)?",
    re.ASCII,
)


def _check(text: str) -> str:
    if _TERM.fullmatch(text) is None:
        raise ValueError("a term is written as P1Y, P6M, P2W, P30D or several of these: P1Y6M")
    return text


# The pattern is for documents: its engine has no look-ahead.
Term = Annotated[
    str,
    StringConstraints(max_length=16, pattern=r"^P[0-9]+[YMWD]([0-9]+[YMWD])*$"),
    AfterValidator(_check),
]


def add_term(start: datetime, term: str) -> datetime:
    """When a term ends that begins at `start`: years and months first, then weeks and days.

    A day that the month does not have becomes its last: a month after 31 January is 28 February, or
    29. The calendar is that of `start`'s time zone.

    Raises:
        ValueError: `term` is none, or ends after the year 9998.
    """
    found = _TERM.fullmatch(term)
    if found is None:
        raise ValueError("not a term")
    years, months, weeks, days = (int(part or 0) for part in found.groups())
    month = start.year * _MONTHS + start.month - 1 + years * _MONTHS + months
    year, month = divmod(month, _MONTHS)
    if year > LAST_YEAR:
        raise ValueError("the term ends too late")
    last_day = calendar.monthrange(year, month + 1)[1]
    moved = start.replace(year=year, month=month + 1, day=min(start.day, last_day))
    try:
        end = moved + timedelta(weeks=weeks, days=days)
    except OverflowError:
        raise ValueError("the term ends too late") from None
    if end.year > LAST_YEAR:
        raise ValueError("the term ends too late")
    return end


__all__ = ["LAST_YEAR", "Term", "add_term"]
