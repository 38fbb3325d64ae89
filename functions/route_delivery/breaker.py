"""Circuit breaker per endpoint: a failing endpoint shall not use up the function's concurrency."""

from dataclasses import dataclass


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    resumes_at_s: float = 0.0


class Breaker:
    """Counts consecutive failures per endpoint; has an entry only for endpoints that fail now.

    The caller passes the times, all from one monotonic clock.
    """

    def __init__(self, *, failures: int, pause_s: float) -> None:
        self._limit = failures
        self._pause_s = pause_s
        self._circuits: dict[str, _Circuit] = {}

    def wait_s(self, endpoint: str, now_s: float) -> float:
        """Seconds until the endpoint may be tried; 0 for now.

        After a pause one caller gets 0 and is the probe; other callers wait for another pause, or
        until the probe succeeds. A probe that never reports costs at most that pause.
        """
        circuit = self._circuits.get(endpoint)
        if circuit is None or circuit.failures < self._limit:
            return 0.0
        if now_s < circuit.resumes_at_s:
            return circuit.resumes_at_s - now_s
        circuit.resumes_at_s = now_s + self._pause_s
        return 0.0

    def failed(self, endpoint: str, now_s: float) -> None:
        """Count a failure: the endpoint did not answer, or answered that it is overloaded."""
        circuit = self._circuits.setdefault(endpoint, _Circuit())
        circuit.failures += 1
        circuit.resumes_at_s = now_s + self._pause_s

    def answered(self, endpoint: str) -> None:
        """Reset the count: the endpoint answered."""
        self._circuits.pop(endpoint, None)
