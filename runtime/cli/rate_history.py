"""The rate of each function between the polls of `runtime top`, for its sparkline."""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import Final

from runtime.cli.function_views import FunctionView

MOST_POLLS: Final = 120
_BARS: Final = "▁▂▃▄▅▆▇█"


class RateHistory:
    """Rates from the counters of each process: a restarted process begins at 0 again."""

    def __init__(self) -> None:
        self._rates: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_POLLS))
        self._requests: dict[tuple[str, str], int] = {}
        self._polled_at_s: float | None = None

    def add(self, views: Iterable[FunctionView], now_s: float) -> None:
        """Add a poll at the time `now_s` of any clock that only goes forward."""
        since_s, self._polled_at_s = self._polled_at_s, now_s
        before, self._requests = self._requests, {}
        for view in views:
            grown = 0
            for each in view.processes:
                key = (view.function, each.id)
                self._requests[key] = each.requests
                grown += max(0, each.requests - before.get(key, each.requests))
            if since_s is not None and now_s > since_s:
                self._rates[view.function].append(grown / (now_s - since_s))
        for gone in self._rates.keys() - {view.function for view in views}:
            del self._rates[gone]

    def of(self, functions: Sequence[str]) -> list[float]:
        """The rates of several functions together, the newest last."""
        found = [self._rates[name] for name in functions if name in self._rates]
        longest = max(map(len, found), default=0)
        return [
            sum(rates[len(rates) - back] for rates in found if len(rates) >= back)
            for back in range(longest, 0, -1)
        ]


def sparkline(rates: Sequence[float], width: int) -> str:
    """The newest `width` rates as bars of eight heights; the highest rate is a full bar.

    A rate of 0 is the lowest bar, and any other rate is higher.
    """
    shown = rates[-width:]
    highest = max(shown, default=0.0)
    if not highest:
        return (_BARS[0] * len(shown)).rjust(width)
    steps = len(_BARS) - 1
    bars = (_BARS[0 if not rate else max(1, round(steps * rate / highest))] for rate in shown)
    return "".join(bars).rjust(width)
