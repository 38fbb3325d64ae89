"""The pull loops that feed one function's buffer: from its stream, from its mailbox, and others."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from runtime.binding.buffer import PrefetchBuffer
from runtime.broker.connection import Broker
from runtime.broker.puller import Puller, Slots
from runtime.message import Message

DRAIN_S = 5.0
"""For what the server had sent already: more than enough, unless the connection is lost."""


@dataclass(frozen=True, slots=True)
class Source:
    """A durable consumer to pull from.

    Attributes:
        subjects: what it delivers, for those who look at it.
        restore: turns a delivery into the message it stands for (the mailbox's carry another).
        recreate: makes the consumer again when it is gone.
    """

    stream: str
    durable: str
    subjects: Sequence[str]
    ack_wait_s: float
    recreate: Callable[[], Awaitable[object]]
    restore: Callable[[Message], Message] | None = None


class Sink(Protocol):
    """Lets messages in, and says how many there is room for."""

    def add(self, message: Message) -> None:
        """Let one in."""

    def capacity(self) -> int:
        """How many may be here at once, now."""

    def guest_capacity(self) -> int:
        """How many of the mailbox may be among them."""


class PullerSet:
    """Pulls for a buffer until stopped.

    Args:
        broker: the connection.
        buffer: where messages go.
        sources: the function's own.
        door: lets messages in: the buffer, or whoever stands before it.
        deliver: takes a message of the stream, and lets it in by the door sooner or later.
        renewed: called with a stream and a consumer of it that was made anew.
    """

    def __init__(
        self,
        broker: Broker,
        buffer: PrefetchBuffer,
        sources: Sequence[Source],
        *,
        sink: Sink,
        deliver: Callable[[Message], None],
        renewed: Callable[[str, str], None],
    ) -> None:
        self._broker = broker
        self._buffer = buffer
        self._sink = sink
        self._deliver = deliver
        self._renewed = renewed
        self._is_stopped = False
        self._mail: set[Message] = set()
        self._own = [self._puller(source) for source in sources]
        self._others: list[Puller] = []

    @property
    def is_flowing(self) -> bool:
        """Whether all its pull loops are in order."""
        return all(puller.is_flowing for puller in self._pullers)

    @property
    def _pullers(self) -> list[Puller]:
        return self._own + self._others

    async def start(self) -> None:
        """Begin to pull."""
        await asyncio.gather(*(puller.start() for puller in self._own))

    async def stop(self, timeout_s: float) -> None:
        """Pull no more; see `Puller.stop`."""
        self._is_stopped = True
        await asyncio.gather(*(puller.stop(timeout_s) for puller in self._pullers))

    def poke(self) -> None:
        """Tell the pull loops that places became free."""
        for puller in self._own:
            puller.poke()
        for puller in self._others:
            puller.poke()

    async def add_guests(self, source: Source, share: Callable[[], int]) -> "Guests":
        """Pull from one more consumer of the mailbox, whose messages take no more than a share."""
        fellows: set[Message] = set()
        guests = Guests(self._guest_puller(source, fellows, share), fellows)
        if self._is_stopped:
            return guests
        self._others.append(guests.puller)
        await guests.puller.start()
        return guests

    async def remove_guests(self, guests: "Guests") -> None:
        """Pull from it no more. What the server had sent by now has been taken in."""
        if guests.puller in self._others:
            self._others.remove(guests.puller)
        await guests.puller.stop(DRAIN_S)

    def _puller(self, source: Source) -> Puller:
        buffer, sink = self._buffer, self._sink
        if source.restore is not None:
            return self._guest_puller(source, self._mail, sink.guest_capacity)
        # Where keys take turns, what waits in the mailbox must not hide what comes in the stream.
        held = buffer.count if buffer.fair_queue is None else buffer.count_own
        return Puller(
            self._broker,
            source.stream,
            source.durable,
            slots=Slots(sink.capacity, held),
            deliver=self._deliver,
            recreate=source.recreate,
            renewed=partial(self._renewed, source.stream, source.durable),
        )

    def _guest_puller(
        self, source: Source, fellows: set[Message], share: Callable[[], int]
    ) -> Puller:
        welcome, add = self._buffer.welcome, self._sink.add

        def deliver(message: Message) -> None:
            guest = source.restore(message) if source.restore else message
            welcome(guest, fellows)
            add(guest)

        return Puller(
            self._broker,
            source.stream,
            source.durable,
            slots=Slots(share, lambda: self._buffer.count_guests(fellows)),
            deliver=deliver,
            recreate=source.recreate,
            renewed=partial(self._renewed, source.stream, source.durable),
        )


@dataclass(frozen=True, slots=True)
class Guests:
    """A pull loop over a consumer of the mailbox, and what is here of its messages, unsettled."""

    puller: Puller
    here: set[Message]
