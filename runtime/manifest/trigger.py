"""Computes when a scheduled function is due, from an interval or a cron expression."""

import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Protocol

from cronsim import CronSim, CronSimError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELDS = 5
_LONGEST_SHIFT = timedelta(hours=4)
"""More than any time zone has changed at once, forward or back."""


class Trigger(Protocol):
    """Computes ticks, the same on every host. All moments are aware UTC."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick later than `moment`; None when there is none in 50 years."""

    def latest(self, moment: datetime) -> datetime | None:
        """The last tick not later than `moment`; None when there is none in the 50 years before."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A tick at each multiple of the interval since 1970 UTC."""

    every_s: float

    def next_after(self, moment: datetime) -> datetime | None:
        """The first multiple later than `moment`."""
        return self._latest(moment) + self._step

    def latest(self, moment: datetime) -> datetime | None:
        """The last multiple not later than `moment`."""
        return self._latest(moment)

    def _latest(self, moment: datetime) -> datetime:
        return moment - (moment - _EPOCH) % self._step

    @property
    def _step(self) -> timedelta:
        return timedelta(seconds=self.every_s)


@dataclass(frozen=True, slots=True)
class Cron:
    """The ticks of a cron expression in a time zone, with the rules of Debian's cron.

    When the clock is put forward, a fixed time that is skipped is due right after the change. When
    the clock is put back, a fixed time that comes twice is due only the first time. An expression
    whose minute or hour begins with `*` means an interval, which is not affected by either change.
    """

    expression: str
    zone: str

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick later than `moment`."""
        return next(self._after(moment), None)

    def latest(self, moment: datetime) -> datetime | None:
        """The last tick not later than `moment`."""
        # Backwards the library skips a time that the clock left out or had twice, and may return
        # one that is not due yet. So its answers are only the start of the search.
        for about in CronSim(self.expression, self._local(moment), reverse=True):
            found = None
            for tick in self._after(about.astimezone(UTC) - _LONGEST_SHIFT):
                if tick > moment:
                    break
                found = tick
            if found is not None:
                return found
        return None

    def _after(self, moment: datetime) -> Iterator[datetime]:
        """All ticks later than `moment`, each once and in order."""
        last = moment
        for local in _CronSim(self.expression, self._local(moment)):
            tick = local.astimezone(UTC)
            # A change of the clock may put several ticks on one moment, and from within the second
            # of two equal hours the library may return a time in the first: neither is a further
            # tick.
            if tick > last:
                yield (last := tick)

    def _local(self, moment: datetime) -> datetime:
        # The library has a fast path only for `datetime.UTC`.
        return moment.astimezone(UTC if self.zone == "UTC" else zoneinfo.ZoneInfo(self.zone))


class _CronSim(CronSim):
    """CronSim, corrected for a clock that is put forward by half an hour (Lord Howe Island).

    The library steps by whole hours, so after such a change it begins an hour in its middle.
    Source: cronsim 2.8 `advance_hour`.
    """

    def advance_hour(self) -> bool:
        """Advance to the next matching hour; return False when this hour matches."""
        is_changed = super().advance_hour()
        if is_changed and self.dt.minute:
            begin = self.dt.replace(minute=0)
            if begin == begin.astimezone(UTC).astimezone(begin.tzinfo):
                self.dt = begin
        return is_changed


def check_cron(expression: str) -> str:
    """The expression, if it has five fields and is due at some time.

    Raises:
        ValueError: the expression is not valid, or never due.
    """
    remedy = "write minute, hour, day of month, month and day of week, such as '*/5 * * * *'"
    if len(expression.split()) != _FIELDS:
        raise ValueError(f"{expression!r} does not have the five fields of cron; {remedy}")
    try:
        due = next(CronSim(expression, datetime.now(UTC)), None)
    except CronSimError as error:
        wrong = str(error).lower()
        raise ValueError(f"{expression!r} is not a cron expression: {wrong}; {remedy}") from error
    if due is None:
        raise ValueError(f"{expression!r} is never due; write a day that some month has")
    return expression


def check_zone(name: str) -> str:
    """The name, if it is the name of a time zone.

    Raises:
        ValueError: there is no such time zone.
    """
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = get_close_matches(name, zoneinfo.available_timezones(), n=1)
        remedy = f"did you mean {near[0]}?" if near else "write a name such as Europe/Vienna"
        raise ValueError(f"{name!r} is not a time zone; {remedy}") from error
    return name
