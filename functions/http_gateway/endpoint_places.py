"""How many requests may wait for an endpoint, of all callers and of each."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from functions.http_gateway.problems import ProblemError

_FOR_EACH_FREE = 3
_AT_WORK = 32
_QUICK_S, _SLOW_S = 0.1, 0.25

_Key = tuple[str, str]
K = TypeVar("K")


class EndpointPlaces:
    """Places of requests at endpoints: a slow endpoint, or a caller with many requests, is bounded.

    A caller with a key or token of its own may have three of an endpoint's places for each free
    one. Of a tenant only so many requests are at the endpoint as it answers quickly, and the others
    wait for these: the endpoint answers in the order of arrival, so another tenant's request waits
    for a few only, or not for long.

    Args:
        most: places of one endpoint.
        now_s: a monotonic clock.
    """

    def __init__(self, most: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._at_work = max(1, most // _AT_WORK)
        self._now_s = now_s
        self._used: Counter[str] = Counter()
        self._used_of_caller: Counter[_Key] = Counter()
        self._windows: dict[_Key, _Window] = {}

    @asynccontextmanager
    async def take(
        self, subject: str, caller: str, *, takes_turns: bool, wait_s: float
    ) -> AsyncIterator[None]:
        """A place at the endpoint of a subject.

        Args:
            subject: the endpoint's.
            caller: whose request it is; empty for one that is bounded with all others alone.
            takes_turns: whether a bounded number of the caller's requests is at the endpoint.
            wait_s: how long a request waits for its turn.

        Raises:
            ProblemError: 503 without a place, or without a turn in time; 429 when the caller has
                too many.
        """
        key = (subject, caller)
        with self._place(key):
            if not (caller and takes_turns):
                yield
                return
            window = self._windows.setdefault(key, _Window(self._at_work, self._most))
            try:
                async with asyncio.timeout(wait_s):
                    await window.enter()
            except TimeoutError:
                raise _overloaded() from None
            began_s = self._now_s()
            try:
                yield
            finally:
                window.leave(self._now_s() - began_s)

    @contextmanager
    def _place(self, key: _Key) -> Iterator[None]:
        subject, caller = key
        free = self._most - self._used[subject]
        if free <= 0:
            raise _overloaded()
        if caller and self._used_of_caller[key] >= _FOR_EACH_FREE * free:
            raise ProblemError(
                429, "TOO_MANY_REQUESTS", "Too many requests with this key wait for this endpoint."
            )
        self._used[subject] += 1
        self._used_of_caller[key] += 1
        try:
            yield
        finally:
            _give_back(self._used, subject)
            _give_back(self._used_of_caller, key)
            if key not in self._used_of_caller:
                self._windows.pop(key, None)


class _Window:
    """Bounds how many requests are at an endpoint: more while it answers quickly, few otherwise.

    One that comes to the end of the endpoint's queue waits about as long as the last answer took,
    so that time says whether the requests that are there are too many for others.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most
        self._size = float(least)
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> None:
        """Wait until the request may go to the endpoint."""
        if not self._waiting and self._inside < int(self._size):
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    self._waiting.remove(turn)
            else:
                self._inside -= 1
                self._admit()
            raise

    def leave(self, took_s: float) -> None:
        """The endpoint has answered after this time, or the request was given up."""
        if took_s <= _QUICK_S:
            self._size = min(self._most, self._size + 1)
        elif took_s > _SLOW_S:
            self._size = max(self._least, self._size / 2)
        self._inside -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._inside < int(self._size):
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)


def _give_back(used: Counter[K], key: K) -> None:
    used[key] -= 1
    if not used[key]:
        del used[key]


def _overloaded() -> ProblemError:
    return ProblemError(503, "OVERLOADED", "Too many requests wait for this endpoint.")


__all__ = ["EndpointPlaces"]
