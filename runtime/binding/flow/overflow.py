"""Fair shares of what a function looks at: a key that has too much waits in a queue of its own.

A consumer delivers its stream in order, so behind the ten thousand messages of one tenant it shows
nothing of the others. Whatever of a key exceeds its share of the places here is therefore moved to
the key's overflow queue in the mailbox, at the speed at which messages are stored and not at that
of the function, and comes back from there as places for it become free.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field

from runtime.binding.flow.intake import Intake
from runtime.binding.flow.line import KeyedLine
from runtime.binding.flow.supply import Guests, Source, Supply
from runtime.broker.connection import ApiError
from runtime.broker.overflow import OverflowQueues, name_of
from runtime.broker.parking import Mailbox
from runtime.broker.settler import Settler
from runtime.broker.stream_configs import MAILBOX
from runtime.errors import PublishFailed, Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger

log = get_logger("runtime.overflow")

LOOK_S = 2.0
"""How often the server is asked which overflow queues hold messages, other hosts' included."""
CHUNK = 500
CHUNK_BYTES = 4_000_000
_PAUSE_S = 0.25


@dataclass(slots=True, eq=False)
class _Aside:
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


class Overflow:
    """Keeps each key of one function to its share of the places on this host.

    Args:
        queues: the function's on the server.
        intake: whose places are shared; has a line.
        mailbox: restores what comes back.
        settler: acknowledges what is stored in a queue.
        ack_wait_s: of the queues' consumers.
        least: places that a key has in any case.
    """

    def __init__(
        self,
        queues: OverflowQueues,
        intake: Intake,
        *,
        line: KeyedLine,
        mailbox: Mailbox,
        settler: Settler,
        ack_wait_s: float,
        least: int,
    ) -> None:
        self._queues = queues
        self._intake = intake
        self._line = line
        self._mailbox = mailbox
        self._settler = settler
        self._ack_wait_s = ack_wait_s
        self._ordered = line.is_ordered
        self._least = least
        self._supply: Supply | None = None
        self._asides: dict[str, _Aside] = {}
        self._watch: asyncio.Task[None] | None = None
        self._time = asyncio.get_running_loop().time

    def deliver(self, message: Message) -> None:
        """Take a message of the stream in, or set it aside when its key has its share already."""
        key = self._line.fair_key(message)
        aside = self._asides.get(name_of(key)) if self._asides else None
        is_open = self._line.is_open
        if aside is None and is_open and self._line.waiting_of(key) >= self._share():
            name = name_of(key)
            aside = self._asides[name] = _Aside(name, message.sequence)
            log.debug("A key has more than its share, the rest of it waits aside", queue=name)
        if aside is None or self._belongs_here(message, aside):
            self._intake.add(message)
        else:
            self._intake.hold(message)
            aside.moving.append(message)
            if is_open:
                self._begin(aside)

    def open(self) -> None:
        """Go on: the line has been opened, and whatever another host held is here.

        What came meanwhile of a key that has too much fills the places of the others.
        """
        for key in self._line.fair_keys():
            if name_of(key) in self._asides:
                continue
            if surplus := self._intake.take_back(key, self._share()):
                aside = _Aside(name_of(key), surplus[0].sequence, deque(surplus))
                self._asides[aside.name] = aside
        for aside in self._asides.values():
            aside.extra = 0
            if aside.moving:
                aside.moving = deque(sorted(aside.moving, key=lambda message: message.sequence))
                self._begin(aside)

    async def start(self, supply: Supply) -> None:
        """Find the queues that hold messages, and pull from them too from now on.

        Raises:
            ApiError, Unavailable: the server does not tell.
        """
        self._supply = supply
        await self._queues.look()
        await self._look()
        self._watch = asyncio.create_task(self._run(), name="overflow watch")

    async def finish(self) -> None:
        """Pull from no other queue, but move what is on its way."""
        self._supply = None
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def stop(self) -> None:
        """Move nothing any more. What was on its way is still held."""
        await self.finish()
        tasks = [aside.task for aside in self._asides.values()]
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
        for aside in list(self._asides.values()):
            here = len(aside.guests.here) if aside.guests else 0
            pending = await self._queues.ack_pending(aside.name)
            if make_room and pending > here:
                aside.extra = max(0, pending - self._share())
            total += pending
        return total

    def moving(self) -> set[Message]:
        """What is on its way into a queue, where order lets it come back no other way.

        Handed over through the mailbox it would overtake those that were set aside before it.
        """
        if not self._ordered:
            return set()
        return {message for aside in self._asides.values() for message in aside.moving}

    def _share(self) -> int:
        """How many messages of one key may wait here: with more keys, fewer of each."""
        return max(self._least, self._intake.capacity() // (2 + self._line.groups))

    def _belongs_here(self, message: Message, aside: _Aside) -> bool:
        """Whether a message is no newcomer: it was here before what is in the queue."""
        if message.attempt == 1:
            return False
        before = not self._ordered or message.sequence < aside.first
        return before or self._line.is_awaited(message)

    def _begin(self, aside: _Aside) -> None:
        if aside.task is None or aside.task.done():
            aside.task = asyncio.create_task(self._move(aside), name="overflow")

    async def _move(self, aside: _Aside) -> None:
        is_failing = False
        while aside.moving:
            chunk = self._chunk(aside.moving)
            try:
                await self._pull_from(aside)
                if not self._queues.fits(chunk[0]):
                    await self._wait_until_empty(aside)
                    self._intake.add(aside.moving.popleft())
                    continue
                await self._queues.put(aside.name, chunk, in_order=self._ordered)
            except (ApiError, PublishFailed, Unavailable) as failure:
                if not is_failing:
                    log.warning("A message cannot be set aside", reason=str(failure))
                is_failing = True
                if self._ordered:
                    # What follows must not overtake it, here or in the queue.
                    await asyncio.sleep(_PAUSE_S)
                    continue
                for message in chunk:
                    self._intake.add(message)
            else:
                is_failing = False
                self._settler.ack_all(chunk)
                self._intake.release_all(chunk)
            aside.changed_at_s = self._time()
            for _ in chunk:
                aside.moving.popleft()
            if self._supply is not None:
                self._supply.poke()

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

    async def _wait_until_empty(self, aside: _Aside) -> None:
        """Return when nothing is left in the queue that a message of an order may not overtake."""
        while self._ordered:
            counts = await self._queues.counts()
            if aside.name not in counts and not (aside.guests and aside.guests.here):
                return
            await asyncio.sleep(_PAUSE_S)

    async def _pull_from(self, aside: _Aside) -> None:
        async with aside.opening:
            if aside.guests is None and self._supply is not None:
                aside.guests = await self._guests(aside, self._supply)

    async def _guests(self, aside: _Aside, supply: Supply) -> Guests:
        name = aside.name
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
            return self._share() + aside.extra

        return await supply.add_guests(source, share)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except (ApiError, Unavailable) as failure:
                log.debug("Overflow queues are not looked at now", reason=str(failure))

    async def _look(self) -> None:
        began_s = self._time()
        counts = await self._queues.counts()
        for name in counts.keys() - self._asides.keys():
            first = await self._queues.first_sequence(name)
            # A message of that key may have come meanwhile, and have begun one.
            self._asides.setdefault(name, _Aside(name, first, changed_at_s=began_s))
        for name in counts.keys() & self._asides.keys():
            await self._pull_from(self._asides[name])
        for aside in list(self._asides.values()):
            if aside.name not in counts and aside.is_idle(since_s=began_s):
                await self._close(aside)

    async def _close(self, aside: _Aside) -> None:
        guests, aside.guests = aside.guests, None
        began_s = self._time()
        if guests is not None and self._supply is not None:
            await self._supply.remove_guests(guests)
        # What was moved into it meanwhile has a pull loop of its own.
        if aside.guests is None and aside.is_idle(since_s=began_s):
            del self._asides[aside.name]
