"""Circuit breaker: does not try what has mostly failed in the last minutes."""

from collections import deque
from dataclasses import dataclass, field

_BUCKETS = 10
# As long as the longest wait between two attempts of a job.
_OPEN_KEPT_S = 86_400.0


@dataclass(slots=True)
class _Bucket:
    number: int
    succeeded: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Circuit:
    buckets: deque[_Bucket] = field(default_factory=deque)
    is_open: bool = False
    opened_at_s: float = 0.0
    resumes_at_s: float = 0.0


class Breaker:
    """Counts successes and failures per key, in a window of time.

    A circuit opens when at least `calls` were counted and `ratio` of them failed. After a pause one
    caller is the probe: its success closes the circuit, its failure begins another pause.

    The caller passes the times, all from one monotonic clock.
    """

    def __init__(self, *, calls: int, ratio: float, window_s: float, pause_s: float) -> None:
        self._calls = calls
        self._ratio = ratio
        self._bucket_s = window_s / _BUCKETS
        self._pause_s = pause_s
        self._circuits: dict[object, _Circuit] = {}

    def wait_s(self, key: object, now_s: float) -> float:
        """Seconds until the key may be tried; 0 for now.

        Of the callers after a pause one gets 0 and is the probe. Another one follows after another
        pause, so a probe that never reports costs at most that pause.
        """
        circuit = self._circuits.get(key)
        if circuit is None or not circuit.is_open:
            return 0.0
        if now_s < circuit.resumes_at_s:
            return circuit.resumes_at_s - now_s
        circuit.resumes_at_s = now_s + self._pause_s
        return 0.0

    def open_for_s(self, key: object, now_s: float) -> float:
        """How long the circuit has been open; 0 if it is closed."""
        circuit = self._circuits.get(key)
        return now_s - circuit.opened_at_s if circuit is not None and circuit.is_open else 0.0

    def failed(self, key: object, now_s: float) -> None:
        """Count a failure."""
        circuit = self._circuits.get(key)
        if circuit is None:
            circuit = self._circuits[key] = _Circuit()
        self._bucket(circuit, now_s).failed += 1
        if circuit.is_open:
            circuit.resumes_at_s = now_s + self._pause_s
            return
        failures = sum(bucket.failed for bucket in circuit.buckets)
        calls = failures + sum(bucket.succeeded for bucket in circuit.buckets)
        if calls >= self._calls and failures >= self._ratio * calls:
            circuit.is_open = True
            circuit.opened_at_s = now_s
            circuit.resumes_at_s = now_s + self._pause_s

    def succeeded(self, key: object, now_s: float) -> None:
        """Count a success. It closes an open circuit, and what was counted before is forgotten."""
        circuit = self._circuits.get(key)
        if circuit is None or circuit.is_open:
            circuit = self._circuits[key] = _Circuit()
        self._bucket(circuit, now_s).succeeded += 1

    def forget_idle(self, now_s: float) -> None:
        """Drop what was not tried: closed circuits after a window, open ones after a day.

        A tenant chooses the keys, so what is kept of them must end.
        """
        before = int(now_s / self._bucket_s) - _BUCKETS
        self._circuits = {
            key: circuit
            for key, circuit in self._circuits.items()
            if (
                now_s - circuit.resumes_at_s < _OPEN_KEPT_S
                if circuit.is_open
                else circuit.buckets and circuit.buckets[-1].number > before
            )
        }

    def _bucket(self, circuit: _Circuit, now_s: float) -> _Bucket:
        number = int(now_s / self._bucket_s)
        buckets = circuit.buckets
        if buckets and buckets[-1].number == number:
            return buckets[-1]
        while buckets and buckets[0].number <= number - _BUCKETS:
            buckets.popleft()
        buckets.append(_Bucket(number))
        return buckets[-1]


__all__ = ["Breaker"]
