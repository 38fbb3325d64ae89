"""Rate limiter per device."""

_NS = 1_000_000_000


class DeviceRateLimiter:
    """A token bucket per device, on the clock of the stored messages.

    The time at which the stream stored a message counts, not the time of reading: a backlog read at
    full speed gets the same verdicts as it would have had on time. Call `take` in the stream's
    order. The state is local to the process: N hosts that share a consumer each see a part of a
    device's messages, so together they accept up to N times the rate.

    The state is one number per key: the theoretical arrival time of the generic cell rate
    algorithm. Source: ITU-T I.371, annex A, virtual scheduling.
    """

    def __init__(self, rate_per_s: float, burst: int, *, max_keys: int = 100_000) -> None:
        self._interval_ns = int(_NS / rate_per_s)
        self._tolerance_ns = self._interval_ns * (burst - 1)
        self._furthest_ns = self._tolerance_ns + self._interval_ns
        self._max_keys = max_keys
        self._arrivals: dict[tuple[str, str], int] = {}

    def take(self, key: tuple[str, str], stored_at_ns: int) -> bool:
        """Take a token for a message stored at that time; False when there is none."""
        arrivals = self._arrivals
        due_ns = arrivals.get(key)
        if due_ns is None:
            if len(arrivals) >= self._max_keys:
                self._drop_idle(stored_at_ns)
            due_ns = stored_at_ns
        elif due_ns < stored_at_ns or due_ns - stored_at_ns > self._furthest_ns:
            # The bucket is full, or the stream's clock was put back: start with a full bucket.
            due_ns = stored_at_ns
        elif due_ns - stored_at_ns > self._tolerance_ns:
            return False
        arrivals[key] = due_ns + self._interval_ns
        return True

    def _drop_idle(self, now_ns: int) -> None:
        busy = {key: due_ns for key, due_ns in self._arrivals.items() if due_ns > now_ns}
        self._arrivals = busy if len(busy) < self._max_keys // 2 else {}


__all__ = ["DeviceRateLimiter"]
