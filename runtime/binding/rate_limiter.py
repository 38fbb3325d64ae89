"""The pace at which messages have their turn, where a function's manifest limits its rate.

A token bucket: in any stretch of t seconds at most `burst + limit * t` messages are handed to the
function.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from runtime.binding.buffer import PrefetchBuffer
from runtime.binding.token_bucket import TokenBucket
from runtime.message import Message

PACE_S = 0.01
"""RateLimiter are handed out no more often than this, several at a time if need be."""


class Loop(Protocol):
    """What is needed of the event loop."""

    def time(self) -> float:
        """Seconds on a clock that never goes back."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call once, after so many seconds."""


class RateLimiter:
    """Lets messages into a buffer at the pace of a rate, and has no more fetched than that.

    Pull requests are as large as there are turns left, so that what waits for its turn waits at the
    server, where other hosts find it. Only what a request of before brings too late waits here.

    Args:
        bucket: of this process.
        poke: called when turns have come in.
    """

    def __init__(
        self,
        buffer: PrefetchBuffer,
        token_bucket: TokenBucket,
        *,
        poke: Callable[[], None],
        loop: Loop,
    ) -> None:
        self._token_bucket = token_bucket
        self._buffer = buffer
        self._poke = poke
        self._loop = loop
        self._early: deque[Message] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, message: Message) -> None:
        """Let a message in, now or when its turn comes."""
        if not self._early and self._token_bucket.take():
            self._buffer.add(message)
        else:
            self._buffer.hold(message)
            self._early.append(message)
        self._look_again()

    def capacity(self) -> int:
        """How many messages may be here at once, now."""
        return min(self._buffer.capacity(), self._buffer.count() + self._free())

    def guest_capacity(self) -> int:
        """How many of the mailbox may be among them."""
        return min(self._buffer.guest_capacity(), len(self._buffer.guests) + self._free())

    def stop(self) -> list[Message]:
        """Let nobody in any more; those whose turn has not come."""
        if self._timer is not None:
            self._timer.cancel()
        early, self._early = list(self._early), deque()
        return early

    def _free(self) -> int:
        return max(0, self._token_bucket.count() - len(self._early))

    def _look_again(self) -> None:
        next_in_s = self._token_bucket.next_in_s()
        if self._timer is None and next_in_s is not None:
            self._timer = self._loop.call_later(max(PACE_S, next_in_s), self._turn)

    def _turn(self) -> None:
        self._timer = None
        while self._early and self._token_bucket.take():
            self._buffer.add(self._early.popleft())
        self._poke()
        self._look_again()
