"""Measures the load of one function over the last seconds, from counters that only grow."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.observe.metrics import SECONDS_BUCKETS

SAMPLE_EVERY_S: Final = 1.0
WINDOW_S: Final = 10.0
_BOUNDS: Final = (*(f"{bound:g}" for bound in SECONDS_BUCKETS), "+Inf")


@dataclass(frozen=True, slots=True)
class Totals:
    """The counters of one function at one time.

    Attributes:
        messages: messages or requests that are done, whatever their outcome.
        errors: those of `messages` whose attempt failed.
        calls: number of calls of the handler in each of `SECONDS_BUCKETS`, and beyond the last.
    """

    messages: int
    errors: int
    calls: Sequence[int]


@dataclass(frozen=True, slots=True)
class Load:
    """The growth of the counters over the last `seconds`.

    Attributes:
        handler_seconds: number of calls by the upper bound of their time, without empty bounds.
    """

    seconds: float
    messages: int
    errors: int
    handler_seconds: Mapping[str, int]


class RecentLoad:
    """The load of one function over the last `WINDOW_S`, or since its start if that is less.

    Args:
        read: returns the counters.
        now_s: the time of the event loop's clock.
    """

    def __init__(self, read: Callable[[], Totals], now_s: float) -> None:
        self._read = read
        self._samples = deque([(now_s, read())])

    def sample(self, now_s: float) -> None:
        """Read the counters; call this every `SAMPLE_EVERY_S`."""
        self._samples.append((now_s, self._read()))
        while now_s - self._samples[1][0] >= WINDOW_S:
            self._samples.popleft()

    def load(self, now_s: float) -> Load:
        """The load up to now."""
        since_s, before = self._samples[0]
        now = self._read()
        calls = zip(_BOUNDS, now.calls, before.calls, strict=True)
        return Load(
            now_s - since_s,
            now.messages - before.messages,
            now.errors - before.errors,
            {bound: after - earlier for bound, after, earlier in calls if after > earlier},
        )
