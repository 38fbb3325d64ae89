"""Buffer of the messages that one function holds: waiting, in a call, or being settled."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.message import Message
from runtime.queueing.capacity import Capacity
from runtime.queueing.fair_queue import FairQueue, ReadyQueue
from runtime.queueing.rate_limited_queue import RateLimitedQueue

MAILBOX_SHARE = 4
MEASURE_EVERY = 64
"""Number of settled messages after which the capacity is measured."""
PACE_S = 0.002
"""Least time between two wake-ups for a token: at a higher rate several tokens have come in."""
ROOM_BYTES = 32 * 1024 * 1024
"""The most bytes requested at a time of messages that another host held: half of what a server
keeps for a connection. That host may have held more than the buffer's bytes, when keys waited for a
retry."""


@dataclass(slots=True, eq=False)
class Places:
    """Counts the places that the messages of one pull loop take.

    A message takes a place until it is released, but not while it is blocked behind a failed
    message of its key: blocked messages could take all places, and no other key could go on.

    Attributes:
        taken: the number of places taken.
        blocked_bytes: the size of the blocked messages, which take none.
    """

    taken: int = 0
    blocked_bytes: int = 0


class PrefetchBuffer:
    """Holds the delivered messages and tells the pull loops how many more may come.

    Their number is bounded by a `Capacity`; the bytes have a limit of their own.

    Args:
        at_least: the lowest capacity.
        at_most: the highest capacity.
        max_bytes: the most bytes of all held messages together.
        queue: the queue of messages with keys or with a rate; None for first in, first out.
        wake_pullers: called when a token has come in, so that more messages may be held.

    Attributes:
        held: all unsettled messages, each with the places that count it.
        held_bytes: the size of all held messages.
        ready: the messages that wait for a call.
        ready_bytes: the size of the waiting messages' payloads.
        fair_queue: `ready`, if messages have keys.
    """

    def __init__(
        self,
        *,
        at_least: int,
        at_most: int,
        max_bytes: int,
        queue: FairQueue | RateLimitedQueue | None = None,
        wake_pullers: Callable[[], None] = lambda: None,
    ) -> None:
        self.held: dict[Message, Places] = {}
        self.held_bytes = 0
        self.max_bytes = max_bytes
        self.fair_queue = queue if isinstance(queue, FairQueue) else None
        self.ready: ReadyQueue = deque[Message]() if queue is None else queue
        self.ready_bytes = 0
        self._queue = queue
        self._rate_limited = queue if isinstance(queue, RateLimitedQueue) else None
        self._wake_pullers = wake_pullers
        self._extra = 0
        self._extra_bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._enough: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._enough_messages = 0
        self._enough_bytes = 0
        self._finishing = False
        self._blocked_bytes = 0
        self._delays: dict[Message, asyncio.TimerHandle] = {}
        self._empty = asyncio.Event()
        self._settled = 0
        self._loop = asyncio.get_running_loop()
        self._capacity = Capacity(at_least, at_most, self._loop.time)

    def resize(self, *, at_least: int, at_most: int) -> None:
        """Change the bounds of the capacity, and set the capacity to the lower bound."""
        self._capacity.resize(at_least, at_most)

    def capacity(self) -> int:
        """The most messages that may be held, at this moment, whatever the rate."""
        return self._capacity.messages + self._extra

    def stream_capacity(self) -> int:
        """The most messages that may be held for the pull loop of the stream."""
        return self._within_rate(self.capacity(), len(self.held))

    def mailbox_capacity(self, taken: int) -> int:
        """The most messages of the mailbox that may be held; `taken` of them are held already.

        Only a share of the capacity, so that parked and redriven messages do not starve the stream.
        The whole capacity before the queue is opened: messages that were handed over come before
        those of the stream.
        """
        if self.fair_queue is not None and not self.fair_queue.is_open:
            return self._capacity.messages + taken
        return self._within_rate(max(1, self._capacity.messages // MAILBOX_SHARE), taken)

    def free_bytes(self) -> int:
        """How many more bytes may come; negative when a large message is held.

        Messages that are blocked behind a failed message have the same limit apart, so that a key
        that fails does not stop the others.
        """
        blocked_bytes = min(self._blocked_bytes, self.max_bytes)
        return self.max_bytes - self.held_bytes + blocked_bytes + self._extra_bytes

    def blocked_free_bytes(self, places: Places, loops: int) -> int:
        """How many more bytes of blocked messages one of several pull loops may bring.

        All loops together may use half of the bytes that blocked messages have: a half of that
        whoever comes first, and each loop its share of the rest. Without this limit, the messages
        behind one key that fails would fill the buffer, and no loop could go on.
        """
        at_first = self.max_bytes // 4
        return max(at_first - self._blocked_bytes, at_first // loops - places.blocked_bytes)

    def mailbox_free_bytes(self) -> int:
        """How many more bytes of the mailbox may come.

        Before the queue is opened this is as much as a host may have handed over: twice its limit,
        when keys waited for a retry.
        """
        if self.fair_queue is not None and not self.fair_queue.is_open:
            return self.free_bytes() + 2 * self.max_bytes
        return self.free_bytes()

    def make_room(self, missing: int, taken: int) -> None:
        """Admit `missing` stream messages beyond the `taken` ones, until the queue is opened."""
        self._extra = max(0, taken - self._capacity.messages) + missing
        self._extra_bytes = max(0, self.held_bytes - self.max_bytes) + ROOM_BYTES

    def count(self) -> int:
        """The number of held messages."""
        return len(self.held)

    def add(self, message: Message, places: Places) -> None:
        """Hold a message and enqueue it for its call."""
        self.hold(message, places)
        self.enqueue(message)

    def hold(self, message: Message, places: Places) -> None:
        """Hold a message that does not wait for a call, or not yet."""
        self.held[message] = places
        self.held_bytes += message.size_bytes
        places.taken += 1

    def enqueue(self, message: Message) -> None:
        """Enqueue a held message for its call."""
        is_blocked = self.ready.append(message)
        self.ready_bytes += len(message.data)
        if is_blocked:
            self._count_blocked([message], 1)
        elif message.delay_s:
            self.delay(message, message.delay_s)
        self._wake()

    def open(self) -> None:
        """Open the queue: messages may be taken."""
        if self.fair_queue is not None:
            self.fair_queue.is_open = True
            self._extra = self._extra_bytes = 0
            self._wake_all()

    def take_all(self, messages: int, size_bytes: int) -> list[Message]:
        """Take the oldest waiting messages: at least one, at most so many and so many bytes.

        Raises:
            IndexError: no message waits.
        """
        ready = self.ready
        most = min(messages, len(ready))
        taken = [ready.popleft()]
        total_bytes = len(taken[0].data)
        for _ in range(most - 1):
            total_bytes += len(ready[0].data)
            if total_bytes > size_bytes:
                total_bytes -= len(ready[0].data)
                break
            taken.append(ready.popleft())
        self.ready_bytes -= total_bytes
        return taken

    def take(self) -> Message:
        """Take the oldest waiting message.

        Raises:
            IndexError: no message waits.
        """
        message = self.ready.popleft()
        self.ready_bytes -= len(message.data)
        return message

    def delay(self, message: Message, delay_s: float) -> None:
        """Delay a failed message of an ordered function; messages of its key wait behind it."""
        if self.fair_queue is None:
            raise TypeError("only the queue of an ordered function delays a message")
        if message not in self._delays:
            if message in self.fair_queue.out:
                self.ready_bytes += len(message.data)
            self._count_blocked(self.fair_queue.delay(message), 1)
            self._delays[message] = self._loop.call_later(delay_s, self._resume, message)
        self._wake()
        if self.is_stuck:
            self._empty.set()

    def remaining_s(self, message: Message) -> float:
        """Seconds until a delayed message is due; 0 for any other."""
        timer = self._delays.get(message)
        return max(0.0, timer.when() - self._loop.time()) if timer is not None else 0.0

    def release(self, message: Message) -> None:
        """Remove a settled message."""
        self._let_go(message)
        if self.fair_queue is not None:
            self.fair_queue.release(message)
            self._wake()
        self._settled += 1
        if not self.held:
            self._empty.set()
        if not self.held or self._settled == MEASURE_EVERY:
            self._measure()
        if self.fair_queue is not None and self.is_stuck:
            self._empty.set()

    def release_all(self, messages: Sequence[Message]) -> None:
        """Remove settled messages."""
        let_go = self._let_go
        for message in messages:
            let_go(message)
        if self.fair_queue is not None:
            for message in messages:
                self.fair_queue.release(message)
            self._wake_all()
        self._settled += len(messages)
        if not self.held or self.is_stuck:
            self._empty.set()
        self._measure()

    def clear(self) -> None:
        """Remove all messages."""
        self.held.clear()
        self.held_bytes = 0
        for timer in self._delays.values():
            timer.cancel()
        self._delays.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        self._empty.set()

    async def wait(self) -> None:
        """Return when a message has come, or at `wake_waiters`."""
        self._set_alarm()
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            # Woken and cancelled at the same moment: another waiter must take the message.
            if waiter.done() and not waiter.cancelled():
                self._wake()
            raise

    def wake_waiters(self) -> None:
        """Make every `wait` return."""
        while self._waiters:
            _resolve(self._waiters.popleft())

    async def wait_for(self, messages: int, size_bytes: int, limit_s: float) -> None:
        """Return when so many messages or bytes wait, or after `limit_s`.

        For one caller at a time.
        """
        self._enough_messages, self._enough_bytes = messages, size_bytes
        if limit_s <= 0 or self._finishing or self._is_enough():
            return
        enough = self._enough = self._loop.create_future()
        timer = self._loop.call_later(limit_s, _resolve, enough)
        self._set_alarm()
        try:
            await enough
        finally:
            self._enough = None
            timer.cancel()

    def finish(self) -> list[Message]:
        """Make `wait_for` return without waiting for more: no more messages will come.

        Returns the held messages that have no token yet; they will not be called.
        """
        self._finishing = True
        if self._enough is not None:
            _resolve(self._enough)
        return [] if self._rate_limited is None else self._rate_limited.take_early()

    async def wait_until_empty(self) -> None:
        """Return when all messages are settled, or the rest waits for the end of a delay."""
        while self.held and not self.is_stuck:
            self._empty.clear()
            await self._empty.wait()

    @property
    def is_stuck(self) -> bool:
        """Whether all held messages wait in the queue and none may be taken now."""
        queue = self.fair_queue
        return queue is not None and queue.is_idle and len(self.held) == queue.waiting

    def _measure(self) -> None:
        self._capacity.count_settled(self._settled)
        self._settled = 0

    def _let_go(self, message: Message) -> None:
        places = self.held.pop(message, None)
        if places is not None:
            places.taken -= 1
            self.held_bytes -= message.size_bytes
            if self._delays and (timer := self._delays.pop(message, None)):
                timer.cancel()

    def _resume(self, message: Message) -> None:
        del self._delays[message]
        if self.fair_queue is not None:
            self._count_blocked(self.fair_queue.resume(message), -1)
            self._wake()

    def _count_blocked(self, messages: Sequence[Message], change: int) -> None:
        for message in messages:
            places = self.held[message]
            places.taken -= change
            places.blocked_bytes += change * message.size_bytes
            self._blocked_bytes += change * message.size_bytes

    def _wake(self) -> None:
        """Wake a task that waits for a message, if there is one."""
        if not self.ready:
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if self._enough is not None and self._is_enough():
            _resolve(self._enough)

    def _set_alarm(self) -> None:
        """Set a timer for the next token, when a task waits."""
        in_s = self._queue.next_in_s() if self._queue is not None else None
        if in_s is not None and self._alarm is None:
            self._alarm = self._loop.call_later(max(PACE_S, in_s), self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._wake_pullers()
        self._wake_all()
        if self._waiters or self._enough is not None:
            self._set_alarm()

    def _wake_all(self) -> None:
        for _ in range(max(1, min(len(self._waiters), len(self.ready)))):
            self._wake()

    def _within_rate(self, capacity: int, taken: int) -> int:
        """The capacity, but at most so many more than the `taken` ones as there are tokens."""
        if self._rate_limited is None:
            return capacity
        return min(capacity, taken + self._rate_limited.free_tokens())

    def _is_enough(self) -> bool:
        return len(self.ready) >= self._enough_messages or self.ready_bytes >= self._enough_bytes


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
