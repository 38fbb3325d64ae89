"""Decides from which table each part of a range of buckets is read. Does no I/O.

Marked buckets are not right yet, so they are read from the level below: a marked day from its
hours, a marked hour from its minutes, a marked minute from the rows.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

Level = Literal["minute", "hour", "day"]
WIDTHS: dict[Level, timedelta] = {
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}
_LEVELS: tuple[Level, ...] = ("day", "hour", "minute")
_A_MIDNIGHT = datetime(2000, 1, 1, tzinfo=UTC)


class Span(NamedTuple):
    """A range of time without its end."""

    from_at: datetime
    to_at: datetime


class Sources(NamedTuple):
    """Spans by the table that they are read from; together they are the whole range, once."""

    days: list[Span]
    hours: list[Span]
    minutes: list[Span]
    rows: list[Span]


def plan_sources(wanted: Span, level: Level, marked: dict[Level, list[Span]]) -> Sources:
    """The sources of buckets of `level` in `wanted`, which begins and ends with a bucket.

    Args:
        wanted: the range.
        level: the width of the buckets.
        marked: the marked spans of each level, whole buckets of the level.
    """
    stale: list[Span] = []
    by_level: dict[Level, list[Span]] = {}
    for each in reversed(_LEVELS):
        # What lies above a stale bucket is stale too, whether or not it is marked yet.
        stale = merge([*widen(stale, WIDTHS[each]), *marked.get(each, ())])
        by_level[each] = stale
    left = [wanted]
    found: dict[Level, list[Span]] = {"day": [], "hour": [], "minute": []}
    for each in _LEVELS[_LEVELS.index(level) :]:
        found[each] = subtract(left, by_level[each])
        left = subtract(left, found[each])
    return Sources(found["day"], found["hour"], found["minute"], left)


def merge(spans: Iterable[Span]) -> list[Span]:
    """The same times in order, with no two spans that touch."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.from_at <= merged[-1].to_at:
            merged[-1] = Span(merged[-1].from_at, max(merged[-1].to_at, span.to_at))
        else:
            merged.append(span)
    return merged


def widen(spans: Iterable[Span], width: timedelta) -> list[Span]:
    """The spans, each extended to whole buckets (UTC) of that width."""
    return [Span(floor(span.from_at, width), ceil(span.to_at, width)) for span in spans]


def subtract(spans: list[Span], taken: list[Span]) -> list[Span]:
    """What is left of `spans`; both are in order and touch none of their own."""
    left: list[Span] = []
    place = 0
    for from_at, to_at in spans:
        begin = from_at
        while place < len(taken) and taken[place].to_at <= begin:
            place += 1
        at = place
        while at < len(taken) and taken[at].from_at < to_at:
            if begin < taken[at].from_at:
                left.append(Span(begin, taken[at].from_at))
            begin = max(begin, taken[at].to_at)
            at += 1
        if begin < to_at:
            left.append(Span(begin, to_at))
    return left


def floor(time: datetime, width: timedelta) -> datetime:
    """The beginning of the bucket (UTC) that has the time."""
    return time - (time - _A_MIDNIGHT) % width


def ceil(time: datetime, width: timedelta) -> datetime:
    """The beginning of the first bucket (UTC) that is not before the time."""
    return floor(time + width - timedelta.resolution, width)


__all__ = [
    "WIDTHS",
    "Level",
    "Sources",
    "Span",
    "ceil",
    "floor",
    "merge",
    "plan_sources",
    "subtract",
    "widen",
]
