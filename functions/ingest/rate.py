"""How often a device may speak."""

_NS = 1_000_000_000


class DeviceRateLimiter:
    """A token bucket per device, on the clock of the messages themselves.

    The stream's stored time counts, not the time of reading, so that a backlog worked off at full
    speed is judged as it would have been on time; `take` is called in the stream's order. Kept in
    this process: hosts that share a consumer each see a part of a device's messages, so together
    they let through up to that many times more.

    Kept as one number per key, the generic cell rate algorithm's theoretical arrival time. Source:
    ITU-T I.371, annex A, virtual scheduling.
    """

    def __init__(self, rate_per_s: float, burst: int, *, max_keys: int = 100_000) -> None:
        self._interval_ns = int(_NS / rate_per_s)
        self._tolerance_ns = self._interval_ns * (burst - 1)
        self._furthest_ns = self._tolerance_ns + self._interval_ns
        self._max_keys = max_keys
        self._arrivals: dict[tuple[str, str], int] = {}

    def take(self, key: tuple[str, str], stored_at_ns: int) -> bool:
        """Whether the device may have one message more at that time; takes it if so."""
        arrivals = self._arrivals
        due_ns = arrivals.get(key)
        if due_ns is None:
            if len(arrivals) >= self._max_keys:
                self._drop_idle(stored_at_ns)
            due_ns = stored_at_ns
        elif due_ns < stored_at_ns or due_ns - stored_at_ns > self._furthest_ns:
            # Idle since, or the stream's clock was put back, which must not silence the device.
            due_ns = stored_at_ns
        elif due_ns - stored_at_ns > self._tolerance_ns:
            return False
        arrivals[key] = due_ns + self._interval_ns
        return True

    def _drop_idle(self, now_ns: int) -> None:
        busy = {key: due_ns for key, due_ns in self._arrivals.items() if due_ns > now_ns}
        self._arrivals = busy if len(busy) < self._max_keys // 2 else {}


__all__ = ["DeviceRateLimiter"]
