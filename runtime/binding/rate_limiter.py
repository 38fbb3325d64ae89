"""Stage that admits messages at the manifest's rate, with a token bucket.

When messages have keys, the `FairQueue` itself takes the tokens, because only the queue knows which
message is next.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.message import Message
from runtime.queueing.token_bucket import TokenBucket

PACE_S = 0.01
"""Least interval of the timer, which admits several messages at a time at a higher rate."""


class Loop(Protocol):
    """The part of the event loop that the limiter needs."""

    def time(self) -> float:
        """Seconds of a monotonic clock."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call `callback` once, after `delay` seconds."""


class RateLimiter:
    """Admits one message for each token, and limits pull requests to the tokens.

    So messages wait on the server, where other hosts can get them. Only messages of an earlier
    request that arrive too soon wait here.

    Args:
        buffer: gets the admitted messages.
        token_bucket: the process's token bucket.
        wake_pullers: called when tokens have come in.
        loop: gives the time and the timer.
    """

    def __init__(
        self,
        buffer: PrefetchBuffer,
        token_bucket: TokenBucket,
        *,
        wake_pullers: Callable[[], None],
        loop: Loop,
    ) -> None:
        self._token_bucket = token_bucket
        self._buffer = buffer
        self._wake_pullers = wake_pullers
        self._loop = loop
        self._early: deque[Message] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, message: Message, places: Places) -> bool:
        """Let the message pass for a token, or hold it until a token comes."""
        passes = not self._early and self._token_bucket.take()
        if not passes:
            self._buffer.hold(message, places)
            self._early.append(message)
        self._set_timer()
        return passes

    def capacity(self) -> int:
        """The most messages that may be held, at this moment."""
        return min(self._buffer.capacity(), self._buffer.count() + self._free())

    def mailbox_capacity(self, taken: int) -> int:
        """The most messages of the mailbox that may be held; `taken` of them are held already."""
        return min(self._buffer.mailbox_capacity(taken), taken + self._free())

    def stop(self) -> list[Message]:
        """Admit no more messages; return those that had no token yet."""
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
        self._wake_pullers()
        self._set_timer()
