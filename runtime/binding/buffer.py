"""The messages that one function holds: waiting, in a call, or being settled."""

import asyncio
from collections import deque
from collections.abc import Sequence

from runtime.binding.fair_queue import Awaited, FairQueue, ReadyQueue
from runtime.message import Message
from runtime.observe.logs import get_logger

log = get_logger("runtime.buffer")

PREFETCH_S = 0.2
"""Messages are fetched ahead for this much work, as measured."""
RATE_WINDOW_S = 0.1
OVERDUE_S = 15.0
"""How much later than it should a failed message may come back before those of its key go on."""
MAILBOX_SHARE = 4


class PrefetchBuffer:
    """Takes what the pull loops deliver and says how much more may come.

    The capacity follows the function's pace: as many as may run at once, and what it settles in
    `PREFETCH_S`. A slow function so holds hardly more than it works on, and a fast one never
    starves between two pulls.

    Attributes:
        held: everything here and unsettled.
        guests: those of `held` that did not come from the stream itself but from the mailbox, each
            with the set of those that came the same way.
        ready: what waits for its call.
        ready_bytes: the payloads' size of what waits.
        line: `ready`, where messages have keys that take turns.
    """

    def __init__(self, *, at_least: int, at_most: int, fair_queue: FairQueue | None = None) -> None:
        self.held: set[Message] = set()
        self.guests: dict[Message, set[Message]] = {}
        self.fair_queue = fair_queue
        self.ready: ReadyQueue = deque[Message]() if fair_queue is None else fair_queue
        self.ready_bytes = 0
        self._at_least = at_least
        self._at_most = max(at_least, at_most)
        self._capacity = at_least
        self._extra = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._enough: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._enough_messages = 0
        self._enough_bytes = 0
        self._finishing = False
        self._excused_until_s = 0.0
        self._overdue: dict[int, asyncio.TimerHandle] = {}
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
        return self._capacity + self._extra

    def make_room(self, missing: int) -> None:
        """Let so many more of the stream in, until the line is opened, than are here."""
        self._extra = max(0, self.count_own() - self._capacity) + missing

    def guest_capacity(self) -> int:
        """How many of the mailbox may be among them.

        A share, so that however many are parked or redriven they never starve the stream. But all
        of them before the line is opened: what was handed over comes before what the stream has.
        """
        if self.fair_queue is not None and not self.fair_queue.is_open:
            return self._capacity + len(self.guests)
        return max(1, self._capacity // MAILBOX_SHARE)

    def count(self) -> int:
        """How many are here."""
        return len(self.held)

    def count_own(self) -> int:
        """How many places are taken by what came from the stream itself.

        What is blocked takes none. Were all places taken by those that wait for a message, there
        would be none for it to come back to.
        """
        own = len(self.held) - len(self.guests)
        if self.fair_queue is not None and self.fair_queue.blocked:
            own -= len(self.fair_queue.blocked.difference(self.guests))
        return own

    def count_guests(self, fellows: set[Message]) -> int:
        """How many places are taken by those who came from the mailbox in one way."""
        if self.fair_queue is not None and self.fair_queue.blocked:
            return len(fellows) - len(fellows & self.fair_queue.blocked)
        return len(fellows)

    def add(self, message: Message) -> None:
        """Take a message in."""
        self.hold(message)
        self.ready.append(message)
        self.ready_bytes += len(message.data)
        self._wake()

    def welcome(self, guest: Message, fellows: set[Message]) -> None:
        """Know that a message about to be added came from the mailbox, as its fellows did."""
        self.guests[guest] = fellows
        fellows.add(guest)

    def hold(self, message: Message) -> None:
        """Have a message here that does not wait for a call, or not yet."""
        if not self.held:
            self._empty.clear()
        self.held.add(message)

    def take_back(self, fair_key: str, keep: int) -> list[Message]:
        """Hold the newest messages of a key without having them wait, but for so many.

        Those that came from the mailbox, or were here before, stay, and those stored before them.
        """
        if self.fair_queue is None:
            return []
        taken = self.fair_queue.take_back(
            fair_key, keep, lambda each: each.attempt == 1 and each not in self.guests
        )
        self.ready_bytes -= sum(len(message.data) for message in taken)
        return taken

    def open(self) -> None:
        """Let the line be taken from."""
        if self.fair_queue is not None:
            self.fair_queue.is_open = True
            self._extra = 0
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

    def release(self, message: Message) -> None:
        """Let go of a message that is settled."""
        self.held.discard(message)
        if self.guests:
            self._dismiss(message)
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
        self.held.difference_update(messages)
        if self.guests:
            for message in messages:
                self._dismiss(message)
        if self.fair_queue is not None:
            for message in messages:
                self.fair_queue.release(message)
            self._wake_all()
        self._settled += len(messages)
        if not self.held:
            self._empty.set()
        self._measure()

    def expect(self, message: Message, delay_s: float) -> None:
        """Say that a message is about to be sent back; in an order, those of its key wait for it.

        They do not wait for ever: it may have been removed from its stream meanwhile.
        """
        if self.fair_queue is not None and self.fair_queue.is_ordered:
            self.fair_queue.release(message, comes_back=True)
            self._watch_for(message, delay_s + OVERDUE_S)

    def expect_from_another(self, awaited: Awaited, delay_s: float) -> None:
        """As `expect`, for a message that the host before this one sent back."""
        if self.fair_queue is not None:
            self.fair_queue.await_return(awaited)
            self._watch_for(awaited, delay_s + OVERDUE_S)

    def suspend_deadlines(self) -> None:
        """Say that the server delivers nothing now: no failed message is overdue soon."""
        self._excused_until_s = self._loop.time() + OVERDUE_S

    def clear(self) -> None:
        """Let go of everything."""
        self.held.clear()
        self.guests.clear()
        for timer in self._overdue.values():
            timer.cancel()
        self._overdue.clear()
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
        """Return when everything is settled, or what is not waits for a message elsewhere."""
        if self.fair_queue is not None and self.is_stuck:
            return
        await self._empty.wait()

    @property
    def is_stuck(self) -> bool:
        """Whether all that is here waits in the line, and nothing of it may be taken."""
        fair_queue = self.fair_queue
        return (
            fair_queue is not None and fair_queue.is_idle and len(self.held) == fair_queue.waiting
        )

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
        """Wake when the pace lets the next one go, where nothing else holds it back."""
        in_s = self.fair_queue.next_in_s() if self.fair_queue is not None else None
        if in_s is not None and self._alarm is None:
            self._alarm = self._loop.call_later(in_s, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self._wake_all()

    def _wake_all(self) -> None:
        for _ in range(min(len(self._waiters), len(self.ready))):
            self._wake()

    def _dismiss(self, guest: Message) -> None:
        fellows = self.guests.pop(guest, None)
        if fellows is not None:
            fellows.discard(guest)

    def _watch_for(self, awaited: Message | Awaited, limit_s: float) -> None:
        """Give it up after this time, and no sooner: it may have failed, and come back, before."""
        if (earlier := self._overdue.get(awaited.sequence)) is not None:
            earlier.cancel()
        self._overdue[awaited.sequence] = self._loop.call_later(limit_s, self._give_up, awaited)

    def _give_up(self, awaited: Message | Awaited) -> None:
        del self._overdue[awaited.sequence]
        if self._loop.time() < self._excused_until_s:
            self._watch_for(awaited, OVERDUE_S)
        elif self.fair_queue is not None and self.fair_queue.stop_awaiting(awaited):
            log.warning(
                "A message did not come back in time, those of its key go on",
                sequence=awaited.sequence,
            )
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
