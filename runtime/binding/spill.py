"""Stage that limits each key to its share of the buffer, and moves the rest to spill queues.

A consumer delivers its stream in order, so ten thousand messages of one tenant hide the messages of
the others. Therefore messages beyond a key's share are moved to a spill queue in the mailbox, as
fast as messages can be stored and not as fast as the function works. They are pulled from the spill
queue as places become free.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.binding.settlement import Settlement
from runtime.broker.connection import ApiError
from runtime.broker.spill_queues import SLOTS, SpillQueues, name_of
from runtime.errors import PublishFailed, Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.queueing.fair_queue import FairQueue
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.spill")

LOOK_S = 2.0
"""How often the server is asked whether a key's queue is empty, while a key has one."""
_PAUSE_S = 0.25


@dataclass(slots=True, eq=False)
class _Slot:
    """The state of one spill queue in this process.

    Attributes:
        moving: messages that are being moved into it, in order, each with the name of its key.
        extra: how many messages beyond a share may come back at once.
        mover: the task that moves them, one chunk after the other.
    """

    number: int
    moving: deque[tuple[str, Message]] = field(default_factory=deque)
    extra: int = 0
    mover: SupervisedTask | None = None


@dataclass(slots=True, eq=False)
class _OrderedKey:
    """An order key with messages in a spill queue, to which its later messages must go too.

    Attributes:
        first: the sequence of its first message in the queue.
        changed_at_s: time of the loop's clock at which a message was last moved.
    """

    slot: _Slot
    first: int
    changed_at_s: float


class Spill:
    """Limits each key of one function to its share of the places on this host.

    With an order, new messages of a key that has messages in a spill queue are appended to that
    queue, and one process, the leader, assigns the keys to slots. Without an order each process
    uses a hash of the key, and a new message may be called before one that waits in a queue.

    Args:
        queues: the function's spill queues on the server.
        buffer: the buffer whose places are shared.
        fair_queue: the buffer's queue.
        settlement: acknowledges messages that are stored in a queue.
        least: the least places of a key.
        wake_pullers: called when messages were moved, and places became free.
    """

    def __init__(
        self,
        queues: SpillQueues,
        buffer: PrefetchBuffer,
        fair_queue: FairQueue,
        settlement: Settlement,
        *,
        least: int,
        wake_pullers: Callable[[], None],
    ) -> None:
        self._queues = queues
        self._buffer = buffer
        self._fair_queue = fair_queue
        self._settlement = settlement
        self._least = least
        self._wake_pullers = wake_pullers
        self._slots = [_Slot(number) for number in range(SLOTS)]
        self._moving_bytes = 0
        self._keys: dict[str, _OrderedKey] = {}
        self._watch = SupervisedTask(self._forget_empty_keys, "spill watch")
        self._time = asyncio.get_running_loop().time

    def admit(self, message: Message, places: Places) -> bool:
        """Whether the message goes on; a message beyond its key's share is moved to a queue."""
        queue = self._fair_queue
        key = queue.fair_key(message)
        spilled = self._keys.get(name_of(key)) if self._keys else None
        if message.attempt > 1:
            # Delivered before, so it may be older than the messages in the queue.
            if spilled is None or message.sequence < spilled.first:
                return True
        elif spilled is None and self._is_within_share(key):
            return True
        name = name_of(key)
        slot = self._slot_of(name, message) if spilled is None else spilled.slot
        if spilled is not None:
            spilled.changed_at_s = self._time()
        self._buffer.hold(message, places)
        slot.moving.append((name, message))
        self._moving_bytes += message.size_bytes
        if queue.is_open:
            self._begin(slot)
        return False

    def capacity(self, slot: int) -> int:
        """The most messages of a slot that may be held, at this moment."""
        return self._share() + self._slots[slot].extra

    def free_bytes(self) -> int:
        """How many more bytes of the slots may come.

        Messages that are being moved take no room from messages that come back: a message that is
        too large to be moved waits until the others of its key have come back.
        """
        return self._buffer.free_bytes() + self._moving_bytes

    async def start(self) -> None:
        """Create the queues, and with an order read which keys they have.

        Raises:
            ApiError, Unavailable: the server refused, or does not answer.
        """
        await self._queues.prepare()
        if self._fair_queue.is_ordered:
            for key in await self._queues.keys():
                first = await self._queues.first_sequence(key.slot, key.name)
                slot = self._slots[key.slot % SLOTS]
                self._keys[key.name] = _OrderedKey(slot, first, self._time())
            self._watch.start()

    def open(self) -> None:
        """Go on, after the queue has been opened and another host's messages have arrived."""
        for slot in self._slots:
            slot.extra = 0
            if slot.moving:
                slot.moving = deque(sorted(slot.moving, key=lambda each: each[1].sequence))
                self._begin(slot)

    async def stop(self) -> None:
        """Stop moving messages. Messages that were being moved are still held."""
        await self._watch.stop()
        movers = [slot.mover for slot in self._slots if slot.mover is not None]
        await asyncio.gather(*(mover.stop() for mover in movers))

    async def ack_pending(self, *, make_room: bool) -> int:
        """The number of messages of the queues that are delivered and not settled, on any host.

        Args:
            make_room: whether to reserve places for all of them, until `open`.

        Raises:
            Unavailable: JetStream does not answer.
        """
        total = 0
        for slot in {key.slot.number: key.slot for key in self._keys.values()}.values():
            pending = await self._queues.ack_pending(slot.number)
            if make_room:
                slot.extra = max(0, pending - self._share())
            total += pending
        return total

    def moving(self) -> set[Message]:
        """With an order, the messages that are being moved into a queue.

        Handed over through the mailbox, such a message would overtake those moved before it.
        """
        if not self._fair_queue.is_ordered:
            return set()
        return {message for slot in self._slots for _, message in slot.moving}

    def _is_within_share(self, key: str) -> bool:
        queue = self._fair_queue
        if queue.waiting_of(key) >= self._share():
            return False
        # With an order, a key's messages may all wait behind a failed one, for long.
        return not queue.is_ordered or queue.waiting_bytes_of(key) < self._share_bytes()

    def _share_bytes(self) -> int:
        return self._buffer.max_bytes // (2 * (2 + self._fair_queue.groups))

    def _share(self) -> int:
        """The most messages of one key in the buffer: with more keys, fewer of each."""
        return max(self._least, self._buffer.capacity() // (2 + self._fair_queue.groups))

    def _slot_of(self, name: str, first: Message) -> _Slot:
        """Choose the slot of a key that has none yet."""
        if not self._fair_queue.is_ordered:
            # Each level has slots of its own: its messages do not wait behind those of another one.
            levels = self._fair_queue.levels
            level = self._fair_queue.level_of(self._fair_queue.fair_key(first))
            return self._slots[int(name, 16) % (SLOTS // levels) * levels + level]
        taken = Counter(key.slot.number for key in self._keys.values())
        slot = min(self._slots, key=lambda each: taken[each.number])
        self._keys[name] = _OrderedKey(slot, first.sequence, self._time())
        log.debug("A key has more than its share, the rest is moved", slot=slot.number)
        return slot

    def _begin(self, slot: _Slot) -> None:
        if slot.mover is None or slot.mover.has_ended:
            slot.mover = SupervisedTask(partial(self._move, slot), "spill mover").start()

    async def _move(self, slot: _Slot) -> None:
        is_failing = False
        while slot.moving:
            chunk = self._queues.chunk(slot.moving)
            try:
                if self._queues.fits(chunk[0][1]):
                    await self._store(slot, chunk)
                else:
                    await self._wait_until_empty(chunk[0][0])
                    self._buffer.enqueue(chunk[0][1])
            except (ApiError, PublishFailed, Unavailable) as failure:
                if not is_failing:
                    log.warning("A message cannot be moved to its queue", reason=str(failure))
                is_failing = True
                if self._fair_queue.is_ordered:
                    # Later messages must not overtake it, in the buffer or in the queue.
                    await asyncio.sleep(_PAUSE_S)
                    continue
                for _, message in chunk:
                    self._buffer.enqueue(message)
            for _, message in chunk:
                slot.moving.popleft()
                self._moving_bytes -= message.size_bytes
            self._wake_pullers()

    async def _store(self, slot: _Slot, chunk: list[tuple[str, Message]]) -> None:
        await self._queues.put(slot.number, chunk, in_order=self._fair_queue.is_ordered)
        messages = [message for _, message in chunk]
        self._settlement.ack_moved(messages)
        self._buffer.release_all(messages)

    async def _wait_until_empty(self, name: str) -> None:
        """Return when no message of an order key is left in its queue."""
        while self._fair_queue.is_ordered:
            if all(key.name != name for key in await self._queues.keys()):
                return
            await asyncio.sleep(_PAUSE_S)

    async def _forget_empty_keys(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._keys:
                continue
            began_s = self._time()
            # Before the request: messages stored during the request are not in the answer.
            moving = {name for slot in self._slots for name, _ in slot.moving}
            try:
                stored = {key.name for key in await self._queues.keys()}
            except (ApiError, Unavailable) as failure:
                log.debug("The spill queues cannot be read", reason=str(failure))
                continue
            for name, key in list(self._keys.items()):
                if key.changed_at_s < began_s and name not in stored and name not in moving:
                    del self._keys[name]
