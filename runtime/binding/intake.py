"""The messages that one function holds: waiting, in a call, or being settled."""

import asyncio
from collections import deque
from collections.abc import Sequence

from runtime.message import Message

PREFETCH_S = 0.2
"""Messages are fetched ahead for this much work, as measured."""
RATE_WINDOW_S = 0.1
MAILBOX_SHARE = 4


class Intake:
    """Takes what the pull loops deliver and says how much more may come.

    The capacity follows the function's pace: as many as may run at once, and what it settles in
    `PREFETCH_S`. A slow function so holds hardly more than it works on, and a fast one never
    starves between two pulls.

    Attributes:
        held: everything here and unsettled.
        guests: those of `held` that came from the mailbox.
        ready: what waits for its call, oldest first.
        ready_bytes: the payloads' size of what waits.
    """

    def __init__(self, *, at_least: int, at_most: int) -> None:
        self.held: set[Message] = set()
        self.guests: set[Message] = set()
        self.ready: deque[Message] = deque()
        self.ready_bytes = 0
        self._at_least = at_least
        self._at_most = max(at_least, at_most)
        self._capacity = at_least
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._enough: asyncio.Future[None] | None = None
        self._enough_messages = 0
        self._enough_bytes = 0
        self._finishing = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._settled = 0
        self._loop = asyncio.get_running_loop()
        self._window_from_s = self._loop.time()

    def resize(self, *, at_least: int, at_most: int) -> None:
        """Change the bounds of the capacity; it starts anew at the lower one."""
        self._at_least = self._capacity = at_least
        self._at_most = max(at_least, at_most)

    def capacity(self) -> int:
        """How many messages may be here at once, now."""
        return self._capacity

    def guest_capacity(self) -> int:
        """How many of the mailbox may be among them.

        A share, so that however many are parked or redriven they never starve the stream.
        """
        return max(1, self._capacity // MAILBOX_SHARE)

    def count(self) -> int:
        """How many are here."""
        return len(self.held)

    def add(self, message: Message) -> None:
        """Take a message in."""
        if not self.held:
            self._empty.clear()
        self.held.add(message)
        self.ready.append(message)
        self.ready_bytes += len(message.data)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if self._enough is not None and self._is_enough():
            _resolve(self._enough)
            self._enough = None

    def hold(self, message: Message) -> None:
        """Count a message as here that will be added later."""
        self._empty.clear()
        self.held.add(message)

    def take_all(self, messages: int, size_bytes: int) -> list[Message]:
        """The oldest that wait: at least one, at most so many and so large together.

        Raises:
            IndexError: none waits.
        """
        ready = self.ready
        taken = [ready.popleft()]
        total_bytes = len(taken[0].data)
        for _ in range(min(messages - 1, len(ready))):
            total_bytes += len(ready[0].data)
            if total_bytes > size_bytes:
                total_bytes -= len(ready[0].data)
                break
            taken.append(ready.popleft())
        self.ready_bytes -= total_bytes
        return taken

    def take(self) -> Message:
        """The oldest that waits.

        Raises:
            IndexError: none does.
        """
        message = self.ready.popleft()
        self.ready_bytes -= len(message.data)
        return message

    def release(self, message: Message) -> None:
        """Let go of a message that is settled."""
        self.held.discard(message)
        if self.guests:
            self.guests.discard(message)
        self._settled += 1
        if not self.held:
            self._empty.set()
            self._measure()
        elif not self._settled & 63:
            self._measure()

    def release_all(self, messages: Sequence[Message]) -> None:
        """Let go of messages that are settled."""
        self.held.difference_update(messages)
        if self.guests:
            self.guests.difference_update(messages)
        self._settled += len(messages)
        if not self.held:
            self._empty.set()
        self._measure()

    async def wait(self) -> None:
        """Return when a message waits."""
        while not self.ready:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    async def wait_for(self, messages: int, size_bytes: int, limit_s: float) -> None:
        """Return when so many messages or bytes wait, or `limit_s` have passed.

        For one caller at a time.
        """
        self._enough_messages, self._enough_bytes = messages, size_bytes
        if limit_s <= 0 or self._finishing or self._is_enough():
            return
        enough = self._enough = self._loop.create_future()
        timer = self._loop.call_later(limit_s, _resolve, enough)
        try:
            await enough
        finally:
            self._enough = None
            timer.cancel()

    def finish(self) -> None:
        """Hand over what waits without waiting for more, as nothing more will come."""
        self._finishing = True
        if self._enough is not None:
            _resolve(self._enough)

    async def wait_until_empty(self) -> None:
        """Return when everything is settled."""
        await self._empty.wait()

    def _is_enough(self) -> bool:
        return len(self.ready) >= self._enough_messages or self.ready_bytes >= self._enough_bytes

    def _measure(self) -> None:
        now_s = self._loop.time()
        elapsed_s = now_s - self._window_from_s
        if elapsed_s < RATE_WINDOW_S:
            return
        fitting = int(self._settled / elapsed_s * PREFETCH_S)
        wanted = min(self._at_most, self._at_least + fitting)
        # Half way there each time: one odd window does not swing it.
        self._capacity = max(self._at_least, (self._capacity + wanted + 1) // 2)
        self._settled = 0
        self._window_from_s = now_s


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
