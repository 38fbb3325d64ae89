"""Leaves an endpoint that keeps failing alone for a while: it shall hold no slot others need."""

from dataclasses import dataclass


@dataclass(slots=True)
class _Circuit:
    failures: int = 0
    resumes_at_s: float = 0.0


class Breaker:
    """Counts each endpoint's failures in a row; knows only the endpoints that fail at present.

    Times are readings of one monotonic clock, handed in by the caller.
    """

    def __init__(self, *, failures: int, pause_s: float) -> None:
        self._limit = failures
        self._pause_s = pause_s
        self._circuits: dict[str, _Circuit] = {}

    def wait_s(self, endpoint: str, now_s: float) -> float:
        """Seconds to leave the endpoint alone; 0 when it may be tried.

        After a pause one caller gets 0 and thereby is the probe: the others wait another pause, or
        until the probe succeeds. A probe that never reports back costs no more than that pause.
        """
        circuit = self._circuits.get(endpoint)
        if circuit is None or circuit.failures < self._limit:
            return 0.0
        if now_s < circuit.resumes_at_s:
            return circuit.resumes_at_s - now_s
        circuit.resumes_at_s = now_s + self._pause_s
        return 0.0

    def failed(self, endpoint: str, now_s: float) -> None:
        """The endpoint did not answer, or answered that it cannot cope."""
        circuit = self._circuits.setdefault(endpoint, _Circuit())
        circuit.failures += 1
        circuit.resumes_at_s = now_s + self._pause_s

    def answered(self, endpoint: str) -> None:
        """The endpoint is alive, whatever it said."""
        self._circuits.pop(endpoint, None)
