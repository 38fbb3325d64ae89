"""Rate limiter with a token bucket per key."""

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

_NS = 1_000_000_000
# A debt beyond the bucket may grow by this much, besides the size of the bucket.
_MAX_DEBT_NS = 10 * _NS

K = TypeVar("K", bound=Hashable)


class Use(NamedTuple):
    """What a limiter took for a key since it was last asked.

    Attributes:
        added_ns: by how much the tokens moved the theoretical arrival time.
        arrival_ns: that time.
    """

    added_ns: int
    arrival_ns: int


class RateLimiter(Generic[K]):
    """A token bucket per key, on a clock that the caller reads.

    For messages the time at which the stream stored the message counts, not the time of reading: a
    backlog read at full speed gets the same verdicts as it would have had on time. Call `take` in
    the stream's order.

    The state is local to the process: N hosts that share a consumer each see a part of a device's
    messages, so together they accept up to N times the rate, unless they tell each other of their
    `uses` and `settle` them (see `rate_sharing`). A limiter that learns that others took tokens may
    be in debt, which it pays back before it gives out tokens again.

    The state is one number per key: the theoretical arrival time of the generic cell rate
    algorithm. Source: ITU-T I.371, annex A, virtual scheduling.

    Attributes:
        latest_ns: the time of the last `take` while uses are counted; 0 before.
    """

    def __init__(self, rate_per_s: float, burst: int, *, max_keys: int = 100_000) -> None:
        self._interval_ns = int(_NS / rate_per_s)
        self._tolerance_ns = self._interval_ns * (burst - 1)
        self._furthest_ns = self._size_ns = self._tolerance_ns + self._interval_ns
        self._max_keys = max_keys
        self._arrivals: dict[K, int] = {}
        self._counts: dict[K, int] | None = None
        self._counted_from_ns = 0
        self._watched: set[K] = set()
        self.latest_ns = 0

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
        counts = self._counts
        if counts is not None:
            counts[key] = counts.get(key, 0) + 1
            self.latest_ns = now_ns
        return True

    def is_empty(self, key: K, now_ns: int) -> bool:
        """Whether `take` would return False."""
        due_ns = self._arrivals.get(key, now_ns)
        return self._tolerance_ns < due_ns - now_ns <= self._furthest_ns

    def count_uses(self, *, counting: bool) -> None:
        """Count from now on what is taken, or no longer."""
        if counting != (self._counts is not None):
            self._counts = {} if counting else None
            self._watched = set()
            self._counted_from_ns = self.latest_ns = 0
            debt_ns = self._size_ns + _MAX_DEBT_NS if counting else 0
            self._furthest_ns = self._size_ns + debt_ns

    def uses(self, sharers: int) -> dict[K, Use]:
        """What was taken since the last call, of keys that may exceed the rate all together.

        Args:
            sharers: how many limiters take for the same keys. A key of which this one took less
                than half of its part of the rate is left out, unless it was told of before and has
                not paid back since.
        """
        counts, arrivals, interval_ns = self._counts or {}, self._arrivals, self._interval_ns
        elapsed_ns = max(0, self.latest_ns - (self._counted_from_ns or self.latest_ns))
        least = max(2, elapsed_ns // (2 * sharers * interval_ns))
        found = {
            key: Use(count * interval_ns, arrivals[key])
            for key, count in counts.items()
            if (count >= least or key in self._watched) and key in arrivals
        }
        self._watched = {key for key in self._watched.union(found) if self._owes(key)}
        if self._counts:
            self._counts = {}
        self._counted_from_ns = self.latest_ns
        return found

    def settle(self, told: Mapping[K, Use], arrivals_ns: Mapping[K, int]) -> None:
        """Charge what the other limiters took.

        Args:
            told: the uses of this one that the others have been told.
            arrivals_ns: the theoretical arrival times that all uses together make.
        """
        for key, arrival_ns in arrivals_ns.items():
            mine_ns = self._arrivals.get(key)
            if mine_ns is None:
                continue
            # Between `uses` and now this one may have taken more.
            use = told[key]
            since_ns = max(0, mine_ns - use.arrival_ns)
            # The furthest time that `take` does not mistake for that of another clock.
            most_ns = use.arrival_ns - use.added_ns + self._furthest_ns
            self._arrivals[key] = max(mine_ns, min(arrival_ns + since_ns, most_ns))
            if self._owes(key):
                self._watched.add(key)

    def _owes(self, key: K) -> bool:
        return self._arrivals.get(key, 0) > self.latest_ns + self._interval_ns

    def _drop_idle(self, now_ns: int) -> None:
        busy = {key: due_ns for key, due_ns in self._arrivals.items() if due_ns > now_ns}
        self._arrivals = busy if len(busy) < self._max_keys // 2 else {}


__all__ = ["RateLimiter", "Use"]
