"""A stage that lets messages into the buffer at a rate, where a manifest limits one.

Where messages have keys, the `FairQueue` takes from the token bucket itself: which message is next
is known there alone.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.message import Message
from runtime.queueing.token_bucket import TokenBucket

PACE_S = 0.01
"""The timer runs no more often than this, and lets in several messages at a time if need be."""


class Loop(Protocol):
    """What is needed of the event loop."""

    def time(self) -> float:
        """Seconds on a clock that never goes back."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call once, after so many seconds."""


class RateLimiter:
    """Lets a message in for each token, and has no more fetched than there are tokens.

    So messages wait at the server, where other hosts find them. Only what an earlier request brings
    too soon waits here.

    Args:
        buffer: where messages go.
        token_bucket: of this process.
        poke: called when tokens have come in.
        loop: for the time, and for a timer.
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

    def admit(self, message: Message, places: Places) -> bool:
        """Let the message pass for a token, or hold it until there is one."""
        passes = not self._early and self._token_bucket.take()
        if not passes:
            self._buffer.hold(message, places)
            self._early.append(message)
        self._set_timer()
        return passes

    def capacity(self) -> int:
        """How many messages may be here at once, now."""
        return min(self._buffer.capacity(), self._buffer.count() + self._free())

    def mailbox_capacity(self, taken: int) -> int:
        """How many messages of the mailbox may be among them."""
        return min(self._buffer.mailbox_capacity(taken), taken + self._free())

    def stop(self) -> list[Message]:
        """Let no message in any more; returns those that had no token yet."""
        if self._timer is not None:
            self._timer.cancel()
        early, self._early = list(self._early), deque()
        return early

    def _free(self) -> int:
        return max(0, self._token_bucket.count() - len(self._early))

    def _set_timer(self) -> None:
        next_in_s = self._token_bucket.next_in_s()
        if self._timer is None and next_in_s is not None:
            self._timer = self._loop.call_later(max(PACE_S, next_in_s), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        while self._early and self._token_bucket.take():
            self._buffer.enqueue(self._early.popleft())
        self._poke()
        self._set_timer()
