"""The load of a function on all its instances together: rate, share of errors, time of the handler.

Percentiles are of the merged histogram: percentiles of single hosts cannot be averaged.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from runtime.cli.instances import Recent
from runtime.observe.metrics import SECONDS_BUCKETS

_HALF, _MOST = 0.5, 0.99


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one or several functions over the last seconds.

    Attributes:
        messages: the messages behind the rate; instances count over slightly different times.
        errors: those of `messages` whose attempt failed.
        calls: number of calls of the handler by the upper bound of their time in seconds.
    """

    messages_per_s: float = 0.0
    messages: int = 0
    errors: int = 0
    calls: Mapping[float, int] = field(default_factory=dict)

    @property
    def error_share(self) -> float | None:
        """The share of failed attempts; None without messages."""
        return self.errors / self.messages if self.messages else None

    @property
    def p50_s(self) -> float | None:
        """The time within which half of the calls ended; None without calls."""
        return percentile(self.calls, _HALF)

    @property
    def p99_s(self) -> float | None:
        """The time within which 99 of 100 calls ended; None without calls."""
        return percentile(self.calls, _MOST)


def load_of(recents: Iterable[Recent]) -> Load:
    """The load of several instances together."""
    return sum_of(
        Load(each.messages / each.seconds, each.messages, each.errors, each.handler_seconds)
        for each in recents
    )


def sum_of(loads: Iterable[Load]) -> Load:
    """The load of several functions together."""
    rate, messages, errors = 0.0, 0, 0
    calls: Counter[float] = Counter()
    for load in loads:
        rate += load.messages_per_s
        messages += load.messages
        errors += load.errors
        calls.update(load.calls)
    return Load(rate, messages, errors, calls)


def percentile(calls: Mapping[float, int], share: float) -> float | None:
    """The time in seconds within which `share` of the calls ended; None without calls.

    Calls are assumed to be spread evenly between the bounds of their bucket. A result beyond the
    last bound is infinite.
    """
    wanted = share * sum(calls.values())
    if not wanted:
        return None
    seen = 0
    for bound in sorted(calls):
        if seen + calls[bound] >= wanted:
            below = max((each for each in SECONDS_BUCKETS if each < bound), default=0.0)
            if math.isinf(bound):
                return bound
            return below + (bound - below) * (wanted - seen) / calls[bound]
        seen += calls[bound]
    return None


def show_rate(per_s: float) -> str:
    """A rate in at most six characters: `0`, `0.3`, `57`, `1,234`, `98.3k`."""
    if per_s <= 0:
        return "0"
    if per_s < 0.05:  # noqa: PLR2004 - would be rounded to 0.0
        return "<0.1"
    if per_s < 9.95:  # noqa: PLR2004 - one decimal place for one digit
        return f"{per_s:.1f}"
    if per_s < 9_999.5:  # noqa: PLR2004 - in full as far as the column is wide
        return f"{per_s:,.0f}"
    return f"{per_s / 1000:.1f}k" if per_s < 999_950 else f"{per_s / 1_000_000:.1f}M"  # noqa: PLR2004 - as above


def show_share(share: float | None) -> str:
    """A share in percent: `-`, `0`, `<0.1%`, `3.4%`, `100%`."""
    if share is None:
        return "-"
    if share <= 0:
        return "0"
    percent = 100 * share
    if percent < 0.05:  # noqa: PLR2004 - would be rounded to 0.0
        return "<0.1%"
    return f"{percent:.1f}%" if percent < 9.95 else f"{percent:.0f}%"  # noqa: PLR2004 - as above


def show_seconds(seconds: float | None) -> str:
    """A duration in at most five characters: `12µs`, `1.4ms`, `250ms`, `2.5s`, `>60s`."""
    if seconds is None:
        return "-"
    if math.isinf(seconds):
        return f">{SECONDS_BUCKETS[-1]:g}s"
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return _show_digits(seconds / size) + unit
    return _show_digits(seconds) + "s"


def _show_digits(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"  # noqa: PLR2004 - two digits matter
