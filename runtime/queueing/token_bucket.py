"""Token bucket: in any stretch of t seconds at most `burst + limit * t` tokens are taken.

No I/O; the clock is a parameter.
"""

from collections.abc import Callable

from runtime.manifest.model import RateSpec

DEFAULT_BURST_S = 0.1


def token_bucket_of(rate: RateSpec, share: int, time: Callable[[], float]) -> "TokenBucket":
    """Build the token bucket of one process, with its share of the host's rate.

    Args:
        rate: the rate of one host.
        share: number of the host's processes that run the function.
        time: returns seconds of a monotonic clock.
    """
    burst = rate.burst or int(rate.limit * DEFAULT_BURST_S)
    return TokenBucket(rate.limit / share, max(1, burst // share), time)


class TokenBucket:
    """Tokens that are added at a constant rate, up to a largest number."""

    def __init__(self, per_s: float, most: int, time: Callable[[], float]) -> None:
        self._per_s = per_s
        self._most = most
        self._time = time
        self._full_at_s = time()

    def count(self) -> int:
        """The number of tokens that may be taken now."""
        missing = max(0.0, (self._full_at_s - self._time()) * self._per_s)
        return int(self._most - missing + 1e-9)

    def take(self) -> bool:
        """Take one token; return False when there is none."""
        if not self.count():
            return False
        self._full_at_s = max(self._full_at_s, self._time()) + 1 / self._per_s
        return True

    def next_in_s(self) -> float | None:
        """Seconds until the next token; None when none can be added."""
        missing = (self._full_at_s - self._time()) * self._per_s
        if missing <= 0:
            return None
        return (missing - (self._most - self.count() - 1)) / self._per_s
