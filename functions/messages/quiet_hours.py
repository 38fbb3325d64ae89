"""Decides whether a message waits for the end of quiet hours. No I/O; the time is a parameter."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

_MOST_WINDOWS = 8  # A week of windows, one after the other, and one more.


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A daily window in a time zone, on the days on which it begins.

    Attributes:
        starts, ends: wall-clock times; a window that does not end later than it starts ends on the
            next day, so equal times are a whole day.
        days: the days on which a window begins, 0 for Monday.
        high_passes: whether messages of high priority are sent all the same.
    """

    zone: ZoneInfo
    starts: time
    ends: time
    days: frozenset[int] = frozenset(range(7))
    high_passes: bool = False

    def end_of(self, now: datetime) -> datetime | None:
        """When the window that contains `now` ends, in UTC; None when there is none."""
        today = now.astimezone(self.zone).date()
        for day in (today - timedelta(days=1), today):
            if day.weekday() not in self.days:
                continue
            last = day if self.ends > self.starts else day + timedelta(days=1)
            end = _latest(last, self.ends, self.zone)
            if _earliest(day, self.starts, self.zone) <= now < end:
                return end
        return None


def quiet_until(hours: Iterable[QuietHours], now: datetime, *, is_high: bool) -> datetime | None:
    """When a message may be sent; None for now.

    Args:
        hours: the quiet hours that apply; the message waits until none of them is in force.
        now: aware.
        is_high: whether the message has high priority.
    """
    applying = [each for each in hours if not (is_high and each.high_passes)]
    at = now
    for _ in range(_MOST_WINDOWS):
        ends = [end for each in applying if (end := each.end_of(at)) is not None]
        if not ends:
            break
        at = max(ends)
    return at.astimezone(UTC) if at > now else None


def _earliest(day: date, at: time, zone: ZoneInfo) -> datetime:
    """The first moment with this wall-clock time, in UTC.

    A time that the clock skips in spring stands for the moment at which it would have been, had the
    clock not been put forward.
    """
    return datetime.combine(day, at, zone).astimezone(UTC)


def _latest(day: date, at: time, zone: ZoneInfo) -> datetime:
    """The last moment with this wall-clock time, in UTC: in autumn an hour comes twice."""
    # Of a skipped time, fold 1 is the earlier moment: hence the later one of both.
    return max(
        _earliest(day, at, zone), datetime.combine(day, at.replace(fold=1), zone).astimezone(UTC)
    )


__all__ = ["QuietHours", "quiet_until"]
