"""Token bucket: in any stretch of t seconds at most `burst + limit * t` tokens are taken.

No I/O; the clock is whichever is given.
"""

from collections.abc import Callable

from runtime.manifest.model import RateSpec

DEFAULT_BURST_S = 0.1


def token_bucket_of(rate: RateSpec, share: int, time: Callable[[], float]) -> "TokenBucket":
    """A process's part of a host's rate.

    Args:
        rate: of one host.
        share: how many of its processes run the function; each has its part.
        time: seconds on a clock that never goes back.
    """
    burst = rate.burst or int(rate.limit * DEFAULT_BURST_S)
    return TokenBucket(rate.limit / share, max(1, burst // share), time)


class TokenBucket:
    """Tokens that come in evenly, and are kept up to a number."""

    def __init__(self, per_s: float, most: int, time: Callable[[], float]) -> None:
        self._per_s = per_s
        self._most = most
        self._time = time
        self._full_at_s = time()

    def count(self) -> int:
        """How many may be taken now."""
        missing = max(0.0, (self._full_at_s - self._time()) * self._per_s)
        return int(self._most - missing + 1e-9)

    def take(self) -> bool:
        """Take one; False when there is none."""
        if not self.count():
            return False
        self._full_at_s = max(self._full_at_s, self._time()) + 1 / self._per_s
        return True

    def next_in_s(self) -> float | None:
        """Seconds until there is one more; None when none can be added."""
        missing = (self._full_at_s - self._time()) * self._per_s
        if missing <= 0:
            return None
        return (missing - (self._most - self.count() - 1)) / self._per_s
