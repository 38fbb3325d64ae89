"""Decides whether a request to an endpoint may begin: breakers, concurrency, rate.

Failures to connect count for the origin (scheme, host, port), whoever's URLs share it. Answers
count for the endpoint (tenant and URL), whatever routes share it. So one tenant's bad path on a
shared host harms no other, and no endpoint waits for another.
"""

import asyncio
import random
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from functions.outbound.breaker import Breaker
from functions.outbound.pace import (
    ASSUMED_RATE,
    LEAST_ASSUMED_RATE,
    LONGEST_WAIT_S,
    Pace,
    Result,
)
from functions.outbound.receipt import EndpointHealth

LONGEST_PAUSE_S = 3600.0
_SWEEP_S = 60.0

SIGNS: dict[EndpointHealth, tuple[Result | None, bool | None]] = {
    "answered": ("answered", True),
    "throttled": ("throttled", True),
    "failed": ("failed", True),
    "unconnected": ("failed", None),
    "unreachable": (None, False),
    "unknown": (None, None),
}
"""By what an attempt says of its endpoint: the arguments of `leave`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one endpoint and one origin.

    Attributes:
        of_endpoint: requests at a time to one endpoint.
        of_origin: requests at a time to one origin.
        pause_s: how long a circuit stays open before a probe.
        calls: number of calls from which on a circuit may open.
        ratio: the share of failures that opens it.
        window_s: how long a call counts.
    """

    of_endpoint: int = 32
    of_origin: int = 256
    pause_s: float = 30.0
    calls: int = 10
    ratio: float = 0.7
    window_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request may not begin now.

    Attributes:
        wait_s: when the job shall come again.
    """

    code: str
    reason: str
    wait_s: float


@dataclass(slots=True)
class _Endpoint:
    pace: Pace
    waiting: deque["asyncio.Future[bool]"] = field(default_factory=deque)
    woken: int = 0  # requests that were told to enter, and have not yet

    @property
    def has_place(self) -> bool:
        return self.pace.in_flight + self.woken < self.pace.window


class Admission:
    """Admits requests; each admitted one must be ended by `leave`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._endpoints: dict[Hashable, _Endpoint] = {}
        self._in_flight_by_origin: dict[Hashable, int] = {}
        self._unknown: set[Hashable] = set()
        self.endpoint_breaker, self.origin_breaker = (
            Breaker(
                calls=limits.calls,
                ratio=limits.ratio,
                window_s=limits.window_s,
                pause_s=limits.pause_s,
            )
            for _ in range(2)
        )
        self._swept_at_s = self._loop.time()

    async def enter(self, key: Hashable, origin: Hashable) -> Refusal | None:
        """Begin a request to an endpoint; None when it may be made.

        A request waits here while the endpoint's window is full, but not long (`Pace.may_wait`): it
        occupies the function's concurrency, which other endpoints need.
        """
        now_s = self._loop.time()
        if now_s - self._swept_at_s > _SWEEP_S:
            self._sweep(now_s)
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            endpoint = self._endpoints[key] = _Endpoint(Pace(self._limits.of_endpoint))
        pace = endpoint.pace
        if endpoint.waiting or not endpoint.has_place:
            if not pace.may_wait(len(endpoint.waiting), now_s):
                return _busy(pace.postpone_s(now_s, self._assumed_rate))
            if not await self._wait(endpoint):
                return _busy(pace.postpone_s(self._loop.time(), self._assumed_rate))
            now_s = self._loop.time()
        if refusal := self._refuse(key, origin, pace, now_s):
            self._wake(endpoint)
            return refusal
        if pace.is_unknown:
            self._unknown.add(key)
        pace.begin(now_s)
        self._in_flight_by_origin[origin] = self._in_flight_by_origin.get(origin, 0) + 1
        return None

    def leave(
        self, key: Hashable, origin: Hashable, result: Result | None, *, connected: bool | None
    ) -> None:
        """End a request.

        Args:
            key: the endpoint.
            origin: the endpoint's origin.
            result: what it says of the endpoint; None for nothing.
            connected: whether the origin could be connected to; None if that is not known.
        """
        now_s = self._loop.time()
        in_flight = self._in_flight_by_origin[origin] - 1
        if in_flight:
            self._in_flight_by_origin[origin] = in_flight
        else:
            del self._in_flight_by_origin[origin]
        if connected is not None:
            count = self.origin_breaker.succeeded if connected else self.origin_breaker.failed
            count(origin, now_s)
        if result is not None:
            breaker = self.endpoint_breaker
            (breaker.succeeded if result == "answered" else breaker.failed)(key, now_s)
        self._unknown.discard(key)
        endpoint = self._endpoints[key]
        # An origin that cannot be connected to makes its endpoints slow as well.
        endpoint.pace.end("failed" if connected is False else result, now_s)
        if endpoint.pace.is_failing:
            while endpoint.waiting:
                _answer(endpoint.waiting.popleft(), may_enter=False)
        self._wake(endpoint)

    @property
    def _assumed_rate(self) -> float:
        """Requests a second of an endpoint that has not answered yet.

        All such endpoints share one rate. Most answer within milliseconds, and their jobs shall not
        wait for a minute; a hundred that hang shall not send their jobs round and round.
        """
        return max(ASSUMED_RATE / max(1, len(self._unknown)), LEAST_ASSUMED_RATE)

    def _refuse(self, key: Hashable, origin: Hashable, pace: Pace, now_s: float) -> Refusal | None:
        # The origin comes first: while its breaker is open, no endpoint's probe is used up.
        for breaker, of in ((self.origin_breaker, origin), (self.endpoint_breaker, key)):
            if wait_s := breaker.wait_s(of, now_s):
                # The longer it has been failing, the longer its jobs stay away.
                least_s = min(breaker.open_for_s(of, now_s), LONGEST_PAUSE_S)
                return Refusal(
                    "ENDPOINT_PAUSED",
                    "the endpoint failed repeatedly and is paused for a while",
                    max(wait_s, least_s) * random.uniform(1.0, 1.2),  # noqa: S311 - not a secret
                )
        # An endpoint has at most as many places of its origin as are left: so slow endpoints,
        # however many a tenant has there, leave a place for one that has none.
        if pace.in_flight >= self._limits.of_origin - self._in_flight_by_origin.get(origin, 0):
            return _busy(min(LONGEST_WAIT_S, pace.postpone_s(now_s, self._assumed_rate)))
        if not pace.take_token(now_s):
            return Refusal(
                "ENDPOINT_THROTTLED",
                "the endpoint said that it is overloaded, and gets fewer requests for a while",
                pace.postpone_s(now_s),
            )
        return None

    async def _wait(self, endpoint: _Endpoint) -> bool:
        place: asyncio.Future[bool] = self._loop.create_future()
        endpoint.waiting.append(place)
        may_enter = False
        try:
            may_enter = await place
        finally:
            if place.done() and not place.cancelled() and place.result():
                endpoint.woken -= 1
            if not may_enter:
                self._wake(endpoint)
        return may_enter

    def _wake(self, endpoint: _Endpoint) -> None:
        while endpoint.waiting and endpoint.has_place:
            if _answer(endpoint.waiting.popleft(), may_enter=True):
                endpoint.woken += 1

    def _sweep(self, now_s: float) -> None:
        """Forget the endpoints that had nothing to do for a window."""
        self._swept_at_s = now_s
        before_s = now_s - self._limits.window_s
        for key, endpoint in list(self._endpoints.items()):
            pace = endpoint.pace
            if not (pace.in_flight or endpoint.waiting) and pace.used_at_s < before_s:
                del self._endpoints[key]
        self.endpoint_breaker.forget_idle(now_s)
        self.origin_breaker.forget_idle(now_s)


def _busy(wait_s: float) -> Refusal:
    return Refusal("ENDPOINT_BUSY", "the endpoint has as many requests as it may have", wait_s)


def _answer(place: "asyncio.Future[bool]", *, may_enter: bool) -> bool:
    """Whether the request still waited."""
    if place.done():
        return False
    place.set_result(may_enter)
    return True


__all__ = ["SIGNS", "Admission", "Limits", "Refusal"]
