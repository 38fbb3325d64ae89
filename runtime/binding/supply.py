"""The pull loops that feed one function's intake: from its stream, from its mailbox, and others."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from runtime.binding.intake import Intake
from runtime.broker.connection import Broker
from runtime.broker.puller import Puller, Slots
from runtime.message import Message

MAILBOX_SHARE = 4
DRAIN_S = 5.0


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


class Supply:
    """Pulls for an intake until stopped.

    Args:
        broker: the connection.
        intake: where messages go.
        sources: the function's own.
        deliver: takes a message of the stream; the intake itself unless given.
    """

    def __init__(
        self,
        broker: Broker,
        intake: Intake,
        sources: Sequence[Source],
        deliver: Callable[[Message], None] | None = None,
    ) -> None:
        self._broker = broker
        self._intake = intake
        self._deliver = deliver or intake.add
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

    @property
    def has_room_for_guests(self) -> bool:
        """Whether more may come from the mailbox."""
        return len(self._mail) < self._mail_share()

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

    def _mail_share(self) -> int:
        return max(1, self._intake.capacity() // MAILBOX_SHARE)

    def _puller(self, source: Source) -> Puller:
        intake = self._intake
        if source.restore is not None:
            # Parked and redriven messages get a share of the slots, so that however many there are
            # they never starve the stream.
            return self._guest_puller(source, self._mail, self._mail_share)
        # Where keys take turns, what waits in the mailbox must not hide what comes in the stream.
        held = intake.count if intake.line is None else intake.count_own
        return Puller(
            self._broker,
            source.stream,
            source.durable,
            slots=Slots(intake.capacity, held),
            deliver=self._deliver,
            recreate=source.recreate,
        )

    def _guest_puller(
        self, source: Source, fellows: set[Message], share: Callable[[], int]
    ) -> Puller:
        intake = self._intake

        def deliver(message: Message) -> None:
            intake.add_guest(source.restore(message) if source.restore else message, fellows)

        return Puller(
            self._broker,
            source.stream,
            source.durable,
            slots=Slots(share, fellows.__len__),
            deliver=deliver,
            recreate=source.recreate,
        )


@dataclass(frozen=True, slots=True)
class Guests:
    """A pull loop over a consumer of the mailbox, and what is here of its messages, unsettled."""

    puller: Puller
    here: set[Message]
