"""Rate limiter with a token bucket per key."""

from collections.abc import Hashable
from typing import Generic, TypeVar

_NS = 1_000_000_000

K = TypeVar("K", bound=Hashable)


class RateLimiter(Generic[K]):
    """A token bucket per key, on a clock that the caller reads.

    For messages the time at which the stream stored the message counts, not the time of reading: a
    backlog read at full speed gets the same verdicts as it would have had on time. Call `take` in
    the stream's order. The state is local to the process: N hosts that share a consumer each see a
    part of a device's messages, so together they accept up to N times the rate.

    The state is one number per key: the theoretical arrival time of the generic cell rate
    algorithm. Source: ITU-T I.371, annex A, virtual scheduling.
    """

    def __init__(self, rate_per_s: float, burst: int, *, max_keys: int = 100_000) -> None:
        self._interval_ns = int(_NS / rate_per_s)
        self._tolerance_ns = self._interval_ns * (burst - 1)
        self._furthest_ns = self._tolerance_ns + self._interval_ns
        self._max_keys = max_keys
        self._arrivals: dict[K, int] = {}

    def take(self, key: K, now_ns: int) -> bool:
        """Take a token at that time; False when there is none."""
        arrivals = self._arrivals
        due_ns = arrivals.get(key)
        if due_ns is None:
            if len(arrivals) >= self._max_keys:
                self._drop_idle(now_ns)
            due_ns = now_ns
        elif due_ns < now_ns or due_ns - now_ns > self._furthest_ns:
            # The bucket is full, or the clock was put back: start with a full bucket.
            due_ns = now_ns
        elif due_ns - now_ns > self._tolerance_ns:
            return False
        arrivals[key] = due_ns + self._interval_ns
        return True

    def is_empty(self, key: K, now_ns: int) -> bool:
        """Whether `take` would return False."""
        due_ns = self._arrivals.get(key, now_ns)
        return self._tolerance_ns < due_ns - now_ns <= self._furthest_ns

    def _drop_idle(self, now_ns: int) -> None:
        busy = {key: due_ns for key, due_ns in self._arrivals.items() if due_ns > now_ns}
        self._arrivals = busy if len(busy) < self._max_keys // 2 else {}


__all__ = ["RateLimiter"]
