"""How many requests may wait for an endpoint, of all callers and of each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from functions.http_gateway.problems import ProblemError

_SHARE = 4
_AT_WORK = 32

_Key = tuple[str, str]
K = TypeVar("K")


class EndpointPlaces:
    """Places of requests at endpoints: a slow endpoint, or a caller with many requests, is bounded.

    Of a caller with a key or token of its own a quarter of an endpoint's places may be used. Of a
    tenant a few requests at a time are at the endpoint, and the others wait for these: the endpoint
    answers in the order of arrival, so another tenant's request waits for a few only.

    Args:
        most: places of one endpoint.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_caller = max(1, most // _SHARE)
        self._at_work = max(1, most // _AT_WORK)
        self._used: Counter[str] = Counter()
        self._used_of_caller: Counter[_Key] = Counter()
        self._turns: dict[_Key, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def take(
        self, subject: str, caller: str, *, takes_turns: bool, wait_s: float
    ) -> AsyncIterator[None]:
        """A place at the endpoint of a subject.

        Args:
            subject: the endpoint's.
            caller: whose request it is; empty for one that is bounded with all others alone.
            takes_turns: whether few of the caller's requests are at the endpoint at a time.
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
            turn = self._turns.setdefault(key, asyncio.Semaphore(self._at_work))
            try:
                async with asyncio.timeout(wait_s):
                    await turn.acquire()
            except TimeoutError:
                raise _overloaded() from None
            try:
                yield
            finally:
                turn.release()

    @contextmanager
    def _place(self, key: _Key) -> Iterator[None]:
        subject, caller = key
        if self._used[subject] >= self._most:
            raise _overloaded()
        if caller and self._used_of_caller[key] >= self._most_of_caller:
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
                self._turns.pop(key, None)


def _give_back(used: Counter[K], key: K) -> None:
    used[key] -= 1
    if not used[key]:
        del used[key]


def _overloaded() -> ProblemError:
    return ProblemError(503, "OVERLOADED", "Too many requests wait for this endpoint.")


__all__ = ["EndpointPlaces"]
