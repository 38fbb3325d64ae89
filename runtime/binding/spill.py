"""Fair shares of what a function looks at: a key that has too much waits in a queue of its own.

A consumer delivers its stream in order, so behind the ten thousand messages of one tenant it shows
nothing of the others. Whatever of a key exceeds its share of the places here is therefore moved to
the key's overflow queue in the mailbox, at the speed at which messages are stored and not at that
of the function, and comes back from there as places for it become free.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from runtime.binding.buffer import PrefetchBuffer
from runtime.binding.fair_queue import FairQueue
from runtime.binding.puller_set import Guests, PullerSet, Source
from runtime.broker.connection import ApiError
from runtime.broker.mailbox import Mailbox
from runtime.broker.settler import Settler
from runtime.broker.spill_queues import SpillQueues, name_of
from runtime.broker.stream_configs import MAILBOX
from runtime.errors import PublishFailed, Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger

log = get_logger("runtime.spill")

LOOK_S = 2.0
"""How often the server is asked which overflow queues hold messages, other hosts' included."""
CHUNK = 500
CHUNK_BYTES = 4_000_000
_PAUSE_S = 0.25


@dataclass(slots=True, eq=False)
class SpillQueue:
    """One key's overflow queue, as this host sees it.

    Attributes:
        first: the sequence of its first message when this host saw it first.
        extra: how many more than its share may be here.
        opening: held while its pull loop begins, of which it has one.
        moving: messages on their way into it, in order.
        changed_at_s: the loop's clock when something was last moved into it.
    """

    name: str
    first: int = 0
    moving: deque[Message] = field(default_factory=deque)
    changed_at_s: float = 0.0
    guests: Guests | None = None
    extra: int = 0
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: "asyncio.Task[None] | None" = None

    def is_idle(self, *, since_s: float) -> bool:
        """Whether nothing of it is here, and nothing was moved since then."""
        here = self.guests.here if self.guests else ()
        return not here and not self.moving and self.changed_at_s < since_s


class Spill:
    """Keeps each key of one function to its share of the places on this host.

    Args:
        queues: the function's on the server.
        buffer: whose places are shared; has a line.
        mailbox: restores what comes back.
        settler: acknowledges what is stored in a queue.
        ack_wait_s: of the queues' consumers.
        least: places that a key has in any case.
    """

    def __init__(
        self,
        queues: SpillQueues,
        buffer: PrefetchBuffer,
        *,
        fair_queue: FairQueue,
        mailbox: Mailbox,
        settler: Settler,
        ack_wait_s: float,
        least: int,
    ) -> None:
        self._queues = queues
        self._buffer = buffer
        self._fair_queue = fair_queue
        self._mailbox = mailbox
        self._settler = settler
        self._ack_wait_s = ack_wait_s
        self._ordered = fair_queue.is_ordered
        self._least = least
        self._pullers: PullerSet | None = None
        self._spilled: dict[str, SpillQueue] = {}
        self._watch: asyncio.Task[None] | None = None
        self._time = asyncio.get_running_loop().time

    def deliver(self, message: Message) -> None:
        """Take a message of the stream in, or set it aside when its key has its share already."""
        key = self._fair_queue.fair_key(message)
        queue = self._spilled.get(name_of(key)) if self._spilled else None
        is_open = self._fair_queue.is_open
        if queue is None and is_open and self._fair_queue.waiting_of(key) >= self._share():
            name = name_of(key)
            queue = self._spilled[name] = SpillQueue(name, message.sequence)
            log.debug("A key has more than its share, the rest of it waits aside", queue=name)
        if queue is None or self._belongs_here(message, queue):
            self._buffer.add(message)
        else:
            self._buffer.hold(message)
            queue.moving.append(message)
            if is_open:
                self._begin(queue)

    def open(self) -> None:
        """Go on: the line has been opened, and whatever another host held is here.

        What came meanwhile of a key that has too much fills the places of the others.
        """
        for key in self._fair_queue.fair_keys():
            if name_of(key) in self._spilled:
                continue
            if surplus := self._buffer.take_back(key, self._share()):
                queue = SpillQueue(name_of(key), surplus[0].sequence, deque(surplus))
                self._spilled[queue.name] = queue
        for queue in self._spilled.values():
            queue.extra = 0
            if queue.moving:
                queue.moving = deque(sorted(queue.moving, key=lambda message: message.sequence))
                self._begin(queue)

    async def start(self, pullers: PullerSet) -> None:
        """Find the queues that hold messages, and pull from them too from now on.

        Raises:
            ApiError, Unavailable: the server does not tell.
        """
        self._pullers = pullers
        await self._queues.look()
        await self._look()
        self._watch = asyncio.create_task(self._run(), name="overflow watch")

    async def finish(self) -> None:
        """Pull from no other queue, but move what is on its way."""
        self._pullers = None
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def stop(self) -> None:
        """Move nothing any more. What was on its way is still held."""
        await self.finish()
        tasks = [queue.task for queue in self._spilled.values()]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def ack_pending(self, *, make_room: bool) -> int:
        """How many messages of all its queues are delivered and not settled, on any host.

        Args:
            make_room: whether to have places for those of them that are not here, however many
                others are, until `open`.

        Raises:
            Unavailable: JetStream does not answer.
        """
        total = 0
        for queue in list(self._spilled.values()):
            here = len(queue.guests.here) if queue.guests else 0
            pending = await self._queues.ack_pending(queue.name)
            if make_room and pending > here:
                queue.extra = max(0, pending - self._share())
            total += pending
        return total

    def moving(self) -> set[Message]:
        """What is on its way into a queue, where order lets it come back no other way.

        Handed over through the mailbox it would overtake those that were set aside before it.
        """
        if not self._ordered:
            return set()
        return {message for queue in self._spilled.values() for message in queue.moving}

    def _share(self) -> int:
        """How many messages of one key may wait here: with more keys, fewer of each."""
        return max(self._least, self._buffer.capacity() // (2 + self._fair_queue.groups))

    def _belongs_here(self, message: Message, queue: SpillQueue) -> bool:
        """Whether a message is no newcomer: it was here before what is in the queue."""
        if message.attempt == 1:
            return False
        before = not self._ordered or message.sequence < queue.first
        return before or self._fair_queue.is_awaited(message)

    def _begin(self, queue: SpillQueue) -> None:
        if queue.task is None or queue.task.done():
            queue.task = asyncio.create_task(self._move(queue), name="overflow")

    async def _move(self, queue: SpillQueue) -> None:
        is_failing = False
        while queue.moving:
            chunk = self._chunk(queue.moving)
            try:
                await self._pull_from(queue)
                if not self._queues.fits(chunk[0]):
                    await self._wait_until_empty(queue)
                    self._buffer.add(queue.moving.popleft())
                    continue
                await self._queues.put(queue.name, chunk, in_order=self._ordered)
            except (ApiError, PublishFailed, Unavailable) as failure:
                if not is_failing:
                    log.warning("A message cannot be set aside", reason=str(failure))
                is_failing = True
                if self._ordered:
                    # What follows must not overtake it, here or in the queue.
                    await asyncio.sleep(_PAUSE_S)
                    continue
                for message in chunk:
                    self._buffer.add(message)
            else:
                is_failing = False
                self._settler.ack_all(chunk)
                self._buffer.release_all(chunk)
            queue.changed_at_s = self._time()
            for _ in chunk:
                queue.moving.popleft()
            if self._pullers is not None:
                self._pullers.poke()

    def _chunk(self, moving: deque[Message]) -> list[Message]:
        """The next ones to store together: one that is too large for that stands alone."""
        chunk: list[Message] = []
        size_bytes = 0
        for message in moving:
            fits = self._queues.fits(message)
            if fits or not chunk:
                chunk.append(message)
            size_bytes += len(message.data)
            if not fits or len(chunk) == CHUNK or size_bytes >= CHUNK_BYTES:
                break
        return chunk

    async def _wait_until_empty(self, queue: SpillQueue) -> None:
        """Return when nothing is left in the queue that a message of an order may not overtake."""
        while self._ordered:
            counts = await self._queues.counts()
            if queue.name not in counts and not (queue.guests and queue.guests.here):
                return
            await asyncio.sleep(_PAUSE_S)

    async def _pull_from(self, queue: SpillQueue) -> None:
        async with queue.opening:
            if queue.guests is None and self._pullers is not None:
                queue.guests = await self._guests(queue, self._pullers)

    async def _guests(self, queue: SpillQueue, pullers: PullerSet) -> Guests:
        name = queue.name
        await self._queues.ensure(name)

        async def recreate() -> None:
            await self._queues.ensure(name)

        source = Source(
            MAILBOX,
            self._queues.durable(name),
            (),
            self._ack_wait_s,
            recreate,
            self._mailbox.restore,
        )

        def share() -> int:
            return self._share() + queue.extra

        return await pullers.add_guests(source, share)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except (ApiError, Unavailable) as failure:
                log.debug("Spill queues are not looked at now", reason=str(failure))

    async def _look(self) -> None:
        began_s = self._time()
        counts = await self._queues.counts()
        for name in counts.keys() - self._spilled.keys():
            first = await self._queues.first_sequence(name)
            # A message of that key may have come meanwhile, and have begun one.
            self._spilled.setdefault(name, SpillQueue(name, first, changed_at_s=began_s))
        for name in counts.keys() & self._spilled.keys():
            await self._pull_from(self._spilled[name])
        for queue in list(self._spilled.values()):
            if queue.name not in counts and queue.is_idle(since_s=began_s):
                await self._close(queue)

    async def _close(self, queue: SpillQueue) -> None:
        guests, queue.guests = queue.guests, None
        began_s = self._time()
        if guests is not None and self._pullers is not None:
            await self._pullers.remove_guests(guests)
        # What was moved into it meanwhile has a pull loop of its own.
        if queue.guests is None and queue.is_idle(since_s=began_s):
            del self._spilled[queue.name]
