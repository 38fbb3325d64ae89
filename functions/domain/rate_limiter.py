"""Rate limiter with a token bucket per key."""

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

_NS = 1_000_000_000
_OUT_OF_ORDER_NS = 5 * _NS
_QUIET = 4
"""A key is quiet on a host where it takes at most this part of the host's part of the rate."""

K = TypeVar("K", bound=Hashable)


class Use(NamedTuple):
    """What a limiter took for a key and has not told of.

    Attributes:
        added_ns: by how much the tokens moved the theoretical arrival time.
        arrival_ns: that time.
    """

    added_ns: int
    arrival_ns: int


class SteadyClock:
    """Times of messages that are handled at the same time, and so in about their order.

    To a limiter, a time before the newest one may say that the clock was put back, and then a
    bucket is full. So what is older by less than five seconds counts as of the newest time.
    """

    def __init__(self) -> None:
        self._latest_ns = 0

    def read(self, stored_at_ns: int) -> int:
        """The time that counts for a message."""
        if 0 < self._latest_ns - stored_at_ns < _OUT_OF_ORDER_NS:
            return self._latest_ns
        self._latest_ns = stored_at_ns
        return stored_at_ns


class RateLimiter(Generic[K]):
    """A token bucket per key, on a clock that the caller reads.

    For messages the time at which the stream stored the message counts, not the time of reading: a
    backlog read at full speed gets the same verdicts as it would have had on time. Call `take` in
    the stream's order, or with the times of a `SteadyClock`.

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
        self._quiet_until: dict[K, int] = {}
        self._indebted: set[K] = set()
        self.latest_ns = 0

    def take(self, key: K, now_ns: int) -> bool:
        """Take a token at that time; False when there is none."""
        arrivals = self._arrivals
        due_ns = arrivals.get(key)
        if due_ns is None:
            if len(arrivals) >= self._max_keys:
                self._drop_idle(now_ns)
            due_ns = now_ns
        elif due_ns < now_ns:
            due_ns = now_ns
        elif due_ns - now_ns > self._tolerance_ns:
            if not self._is_of_another_clock(key, due_ns - now_ns):
                return False
            due_ns = now_ns
        arrivals[key] = due_ns + self._interval_ns
        counts = self._counts
        if counts is not None:
            counts[key] = counts.get(key, 0) + 1
            self.latest_ns = now_ns
        return True

    def charge(self, key: K, now_ns: int, tokens: int) -> None:
        """Take so many tokens at that time, whether or not there are any: the rest is a debt.

        For work whose size is known when it is done: ask `is_empty` before. A debt is paid back
        within the time in which the whole bucket fills.
        """
        due_ns = self._arrivals.get(key)
        if due_ns is None:
            if len(self._arrivals) >= self._max_keys:
                self._drop_idle(now_ns)
            due_ns = now_ns
        elif due_ns < now_ns or self._is_of_another_clock(key, due_ns - now_ns):
            due_ns = now_ns
        # A much later time would be mistaken for one of a clock that was put back.
        most_ns = max(due_ns, now_ns + self._size_ns)
        self._arrivals[key] = min(due_ns + tokens * self._interval_ns, most_ns)
        if self._counts is not None:
            self._counts[key] = self._counts.get(key, 0) + tokens
            self.latest_ns = now_ns

    def is_empty(self, key: K, now_ns: int) -> bool:
        """Whether `take` would return False."""
        ahead_ns = self._arrivals.get(key, now_ns) - now_ns
        return self._tolerance_ns < ahead_ns and not self._is_of_another_clock(key, ahead_ns)

    def share_with(self, sharers: int) -> None:
        """Count from now on what is taken, if there are others; no longer if there are none.

        Args:
            sharers: how many limiters take for the same keys, this one included.
        """
        if (sharers > 1) != (self._counts is not None):
            self._counts = {} if sharers > 1 else None
            self._indebted, self._quiet_until = set(), {}
            self._counted_from_ns = self.latest_ns = 0
        self._furthest_ns = self._size_ns
        if sharers > 1:
            # What all may give out before they hear of each other: a burst, what comes in until
            # they are told, and what none of them has told of yet.
            self._furthest_ns += sharers * (self._size_ns + 2 * _NS + 4 * self._interval_ns)

    def uses(self, sharers: int) -> dict[K, Use]:
        """What was taken and is to be told, of keys that may exceed the rate all together.

        A key that takes a quarter of this limiter's part of the rate, or less, is left out: all
        limiters together leave out at most a quarter of the rate of a key. What it takes beyond
        adds up, over calls of this function, and is told when it exceeds a token. Of a key that is
        in debt everything is told.

        Args:
            sharers: how many limiters take for the same keys.
        """
        counts, now_ns, interval_ns = self._counts or {}, self.latest_ns, self._interval_ns
        from_ns = self._counted_from_ns or now_ns
        part = _QUIET * sharers
        quiet_ns = part * interval_ns  # The time in which a quiet key may take one token.
        quiet_until, indebted, arrivals = self._quiet_until, self._indebted, self._arrivals
        found: dict[K, Use] = {}
        for key, count in counts.items():
            # Never more than a token, unless the clock was put back.
            kept_ns = min(max(0, quiet_until.get(key, 0) - from_ns), quiet_ns)
            until_ns = from_ns + kept_ns + count * quiet_ns
            if until_ns - now_ns <= quiet_ns and key not in indebted:
                quiet_until[key] = until_ns
            elif key in arrivals:
                quiet_until.pop(key, None)
                found[key] = Use(count * interval_ns + kept_ns // part, arrivals[key])
        if counts:
            self._counts = {}
        self._counted_from_ns = now_ns
        self._forget_quiet(now_ns)
        self._indebted = {key for key in indebted if self._owes(key)}
        return found

    def keep(self, uses: Mapping[K, Use]) -> None:
        """Tell of these uses the next time: there was no room for them."""
        if (counts := self._counts) is not None:
            for key, use in uses.items():
                counts[key] = counts.get(key, 0) + use.added_ns // self._interval_ns

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
            # A bucket is at most empty when a token is taken: the time then was this, or later.
            taken_ns = use.arrival_ns - self._size_ns
            owed_ns = min(arrival_ns + since_ns, taken_ns + self._furthest_ns)
            if owed_ns > mine_ns:
                self._arrivals[key] = owed_ns
            if self._owes(key):
                self._indebted.add(key)

    def _is_of_another_clock(self, key: K, ahead_ns: int) -> bool:
        """Whether a time is further away than it can be: the clock was put back."""
        if ahead_ns <= self._size_ns:
            return False
        return ahead_ns > self._furthest_ns or key not in self._indebted

    def _owes(self, key: K) -> bool:
        return self._arrivals.get(key, 0) > self.latest_ns + self._interval_ns

    def _forget_quiet(self, now_ns: int) -> None:
        if len(self._quiet_until) > self._max_keys:
            kept = {key: until for key, until in self._quiet_until.items() if until > now_ns}
            self._quiet_until = kept if len(kept) <= self._max_keys // 2 else {}

    def _drop_idle(self, now_ns: int) -> None:
        busy = {key: due_ns for key, due_ns in self._arrivals.items() if due_ns > now_ns}
        self._arrivals = busy if len(busy) < self._max_keys // 2 else {}


__all__ = ["RateLimiter", "SteadyClock", "Use"]
