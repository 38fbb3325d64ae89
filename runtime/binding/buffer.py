"""The messages that one function holds: waiting, in a call, or being settled."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.message import Message
from runtime.queueing.fair_queue import FairQueue, ReadyQueue

PREFETCH_S = 0.2
"""Messages are fetched ahead for this much work, as measured."""
RATE_WINDOW_S = 0.1
MAILBOX_SHARE = 4
ROOM_BYTES = 32 * 1024 * 1024
"""As much may be on its way at a time of what another host held, half of what a server keeps for a
connection. It held more than fits in here, as keys waited for a retry there."""


@dataclass(slots=True, eq=False)
class Places:
    """How many places are taken by the messages of one pull loop.

    A message takes a place until it is released, but not while it is blocked behind a failed one of
    its key: if those took all places, no other key could go on.
    """

    taken: int = 0


class PrefetchBuffer:
    """Holds what the pull loops deliver and says how much more may come.

    The capacity follows the function's pace: as many messages as may run at once, and what the
    function settles in `PREFETCH_S`. A slow function so holds hardly more than it works on, and a
    fast one never starves between two pulls. The bytes are bounded apart from that.

    Args:
        at_least: the lowest capacity.
        at_most: the highest one.
        max_bytes: how many bytes the messages here may have together.
        fair_queue: where they wait when they have keys; first come, first served without.

    Attributes:
        held: everything here and unsettled, each with the places that count it.
        held_bytes: the size of all that.
        ready: what waits for its call.
        ready_bytes: the payloads' size of what waits.
        fair_queue: `ready`, where messages have keys.
    """

    def __init__(
        self, *, at_least: int, at_most: int, max_bytes: int, fair_queue: FairQueue | None = None
    ) -> None:
        self.held: dict[Message, Places] = {}
        self.held_bytes = 0
        self.max_bytes = max_bytes
        self.fair_queue = fair_queue
        self.ready: ReadyQueue = deque[Message]() if fair_queue is None else fair_queue
        self.ready_bytes = 0
        self._at_least = at_least
        self._at_most = max(at_least, at_most)
        self._capacity = at_least
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
        self._window_from_s = self._loop.time()

    def resize(self, *, at_least: int, at_most: int) -> None:
        """Change the bounds of the capacity; it starts anew at the lower one."""
        self._at_least = self._capacity = at_least
        self._at_most = max(at_least, at_most)

    def capacity(self) -> int:
        """How many messages may be here at once, now."""
        return self._capacity + self._extra

    def mailbox_capacity(self, taken: int) -> int:
        """How many messages of the mailbox may be among them; `taken` are here already.

        A share, so that however many are parked or redriven they never starve the stream. But all
        of them before the queue is opened: what was handed over comes before what the stream has.
        """
        if self.fair_queue is not None and not self.fair_queue.is_open:
            return self._capacity + taken
        return max(1, self._capacity // MAILBOX_SHARE)

    def free_bytes(self) -> int:
        """How many bytes more may come; less than none when a large message is here.

        What is blocked behind a failed message has as much room of its own, so that a key that
        fails does not stop the others.
        """
        blocked_bytes = min(self._blocked_bytes, self.max_bytes)
        return self.max_bytes - self.held_bytes + blocked_bytes + self._extra_bytes

    def mailbox_free_bytes(self) -> int:
        """How many bytes more of the mailbox may come.

        Before the queue is opened as much as a host may have handed over, which held twice its
        bytes when keys waited for a retry.
        """
        if self.fair_queue is not None and not self.fair_queue.is_open:
            return self.free_bytes() + 2 * self.max_bytes
        return self.free_bytes()

    def make_room(self, missing: int, taken: int) -> None:
        """Let so many more of the stream in, until the queue is opened, than the `taken` ones."""
        self._extra = max(0, taken - self._capacity) + missing
        self._extra_bytes = max(0, self.held_bytes - self.max_bytes) + ROOM_BYTES

    def count(self) -> int:
        """How many messages are here."""
        return len(self.held)

    def add(self, message: Message, places: Places) -> None:
        """Take a message in, to wait for its call."""
        self.hold(message, places)
        self.enqueue(message)

    def hold(self, message: Message, places: Places) -> None:
        """Have a message here that does not wait for a call, or not yet."""
        self.held[message] = places
        self.held_bytes += message.size_bytes
        places.taken += 1

    def enqueue(self, message: Message) -> None:
        """Have a message that is held wait for its call."""
        is_blocked = self.ready.append(message)
        self.ready_bytes += len(message.data)
        if is_blocked:
            self._count_blocked([message], 1)
        elif message.delay_s:
            self.delay(message, message.delay_s)
        self._wake()

    def open(self) -> None:
        """Let messages be taken from the queue."""
        if self.fair_queue is not None:
            self.fair_queue.is_open = True
            self._extra = self._extra_bytes = 0
            self._wake_all()

    def take_all(self, messages: int, size_bytes: int) -> list[Message]:
        """The oldest that wait: at least one, at most so many and so large together.

        Raises:
            IndexError: none waits.
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
        """The oldest that waits.

        Raises:
            IndexError: none does.
        """
        message = self.ready.popleft()
        self.ready_bytes -= len(message.data)
        return message

    def delay(self, message: Message, delay_s: float) -> None:
        """Have a failed message of an order wait for its next call here, and its key behind it."""
        if self.fair_queue is None:
            raise TypeError("a message is delayed in the queue of an ordered function alone")
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
        """Let go of a message that is settled."""
        self._let_go(message)
        if self.fair_queue is not None:
            self.fair_queue.release(message)
            self._wake()
        self._settled += 1
        if not self.held:
            self._empty.set()
            self._measure()
        elif not self._settled & 63:
            self._measure()
        if self.fair_queue is not None and self.is_stuck:
            self._empty.set()

    def release_all(self, messages: Sequence[Message]) -> None:
        """Let go of messages that are settled."""
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
        """Let go of everything."""
        self.held.clear()
        self.held_bytes = 0
        for timer in self._delays.values():
            timer.cancel()
        self._delays.clear()
        self._empty.set()

    async def wait(self) -> None:
        """Return when a message waits."""
        while not self.ready:
            self._set_alarm()
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # Woken and cancelled at once: somebody else must take what it was woken for.
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                raise

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
        """Return when everything is settled, or what is not must wait for longer."""
        while self.held and not self.is_stuck:
            self._empty.clear()
            await self._empty.wait()

    @property
    def is_stuck(self) -> bool:
        """Whether all that is here waits in the queue, and none of it may be taken now."""
        queue = self.fair_queue
        return queue is not None and queue.is_idle and len(self.held) == queue.waiting

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
            self.held[message].taken -= change
            self._blocked_bytes += change * message.size_bytes

    def _wake(self) -> None:
        """Wake who waits for a message, if there is one."""
        if not self.ready:
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
        if self._enough is not None and self._is_enough():
            _resolve(self._enough)
            self._enough = None

    def _set_alarm(self) -> None:
        """Wake who waits when a token comes in that alone holds a message back."""
        in_s = self.fair_queue.next_in_s() if self.fair_queue is not None else None
        if in_s is not None and self._alarm is None:
            self._alarm = self._loop.call_later(in_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._wake_all()

    def _wake_all(self) -> None:
        for _ in range(min(len(self._waiters), len(self.ready))):
            self._wake()

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
