"""How many requests one endpoint gets at a time, and how many a second. No I/O."""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

Result = Literal["answered", "throttled", "failed"]

FIRST_WINDOW = 4.0
LEAST_RATE = 0.1
BURST_S = 2.0
WAIT_S = 1.0
HALVED_EVERY_S = 1.0
# The rate grows by a share of the rate before the first throttling, in each second.
RECOVERY_SHARE = 0.05
LONGEST_WAIT_S = 60.0
_MEASURED_S = 5.0
ASSUMED_RATE = 1000.0
LEAST_ASSUMED_RATE = 10.0


@dataclass(slots=True)
class Pace:
    """The window and the rate of one endpoint.

    The window, the number of requests at a time, begins small and grows with each answer, so that
    an endpoint that hangs occupies few places before anything is known of it; each failure halves
    it. The rate is unbounded until the endpoint says that it is overloaded (429, 502, 504): this
    halves the rate, and each second without it adds a share.

    The caller passes the times, all from one monotonic clock.

    Attributes:
        max_window: bound on the window.
        in_flight: number of requests that are not answered.
        is_failing: whether the last request failed.
        postponed: number of jobs that were sent away and have not come back, as far as known.
        rate: requests a second; None for no bound.
    """

    max_window: int
    in_flight: int = 0
    is_failing: bool = False
    postponed: int = 0
    rate: float | None = None
    used_at_s: float = 0.0
    _window: float = FIRST_WINDOW
    _full_rate: float = 0.0
    _tokens: float = 0.0
    _filled_at_s: float = 0.0
    _halved_at_s: float = float("-inf")
    _ended_at_s: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    @property
    def window(self) -> int:
        """The most requests at a time."""
        return int(min(self._window, self.max_window))

    def may_wait(self, waiting: int, now_s: float) -> bool:
        """Whether another request may wait for a place, beside so many others.

        As many as the window has places, or as the endpoint answers within a second.
        """
        if self.is_failing:
            return False
        return waiting < self.window or waiting < self._measure(now_s) * WAIT_S

    def take_token(self, now_s: float) -> bool:
        """Whether the rate allows a request now; takes its share if so."""
        if self.rate is None:
            return True
        self._refill(now_s)
        if self.rate is None:
            return True
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def begin(self, now_s: float) -> None:
        """A request begins."""
        self.in_flight += 1
        self.used_at_s = now_s
        self.postponed = max(0, self.postponed - 1)

    def end(self, result: Result | None, now_s: float) -> None:
        """A request ended; None if nothing is known of the endpoint by it."""
        self.in_flight -= 1
        self.used_at_s = now_s
        if result is None:
            return
        self._ended_at_s.append(now_s)
        self.is_failing = result != "answered"
        if result == "answered":
            self._window = min(self._window + 1.0, self.max_window)
        elif result == "failed":
            self._window = max(1.0, self.window / 2)
        elif now_s - self._halved_at_s >= HALVED_EVERY_S:
            self._halve(now_s)

    @property
    def is_unknown(self) -> bool:
        """Whether no request has ended yet."""
        return not self._ended_at_s

    def postpone_s(self, now_s: float, assumed_rate: float = ASSUMED_RATE) -> float:
        """Seconds after which a job that was not admitted shall come again, spread by a fifth.

        The jobs that were sent away before it come first, at the rate at which the endpoint takes
        them at present.

        Args:
            now_s: the time.
            assumed_rate: requests a second of an endpoint that has not answered yet.
        """
        self.postponed += 1
        rate = self._measure(now_s) if self.rate is None else self.rate
        if not rate and not self.is_failing:
            rate = assumed_rate  # The first requests are on their way.
        wait_s = min(LONGEST_WAIT_S, max(1.0, self.postponed / max(rate, LEAST_RATE)))
        return wait_s * random.uniform(0.8, 1.2)  # noqa: S311 - not a secret

    def _halve(self, now_s: float) -> None:
        if self.rate is None:
            self._full_rate = max(self._measure(now_s), 2 * LEAST_RATE)
            self.rate = self._full_rate
            self._tokens = 0.0
        else:
            self._refill(now_s)
        self.rate = max((self.rate or self._full_rate) / 2, LEAST_RATE)
        self._filled_at_s = self._halved_at_s = now_s

    def _refill(self, now_s: float) -> None:
        passed_s = now_s - self._filled_at_s
        if self.rate is None or passed_s <= 0.0:
            return
        self._filled_at_s = now_s
        self._tokens = min(self._tokens + passed_s * self.rate, max(1.0, BURST_S * self.rate))
        grown = self.rate + passed_s * RECOVERY_SHARE * self._full_rate
        self.rate = None if grown >= self._full_rate else grown

    def _measure(self, now_s: float) -> float:
        """Ended requests a second, in the last seconds."""
        ended_at_s = self._ended_at_s
        while ended_at_s and ended_at_s[0] < now_s - _MEASURED_S:
            ended_at_s.popleft()
        return len(ended_at_s) / max(now_s - ended_at_s[0], 0.01) if ended_at_s else 0.0


__all__ = ["LEAST_RATE", "LONGEST_WAIT_S", "Pace", "Result"]
