"""Starts and stops the pull loops of one function, one for each of its consumers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from runtime.binding.admission import Admission
from runtime.binding.buffer import Places
from runtime.broker.connection import Broker
from runtime.broker.puller import Puller, Slots
from runtime.message import Message

DRAIN_S = 5.0
"""Time for messages that the server has sent: more than enough, unless the connection is lost."""


@dataclass(frozen=True, slots=True)
class Source:
    """A durable consumer to pull from.

    Attributes:
        subjects: the subjects that it delivers, for display.
        restore: converts a delivery to its message (the mailbox delivers copies).
        recreate: creates a deleted consumer again.
    """

    stream: str
    durable: str
    subjects: Sequence[str]
    ack_wait_s: float
    recreate: Callable[[], Awaitable[object]]
    restore: Callable[[Message], Message] | None = None


class PullerSet:
    """The pull loops of one function, until stopped.

    Args:
        broker: the connection.
        renewed: called with the stream and name of a consumer that was created anew.
        failed: called with a message that could not be admitted, and the exception.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        renewed: Callable[[str, str], None],
        failed: Callable[[Message, Exception], None],
    ) -> None:
        self._broker = broker
        self._renewed = renewed
        self._failed = failed
        self._pullers: list[Puller] = []

    def add(
        self,
        source: Source,
        admission: Admission,
        places: Places,
        slots: Slots,
    ) -> None:
        """Add a pull loop for a consumer.

        Args:
            source: the consumer.
            admission: admits its messages.
            places: counts its held messages.
            slots: the room for its pull requests.
        """
        restore, admit = source.restore, admission.admit

        def deliver(message: Message) -> None:
            try:
                if restore is not None:
                    message = restore(message)
                admit(message, places)
            except Exception as failure:  # noqa: BLE001 - a defect must not cost the message
                self._failed(message, failure)

        self._pullers.append(
            Puller(
                self._broker,
                source.stream,
                source.durable,
                slots=slots,
                deliver=deliver,
                recreate=source.recreate,
                renewed=partial(self._renewed, source.stream, source.durable),
            )
        )

    @property
    def is_flowing(self) -> bool:
        """Whether all pull loops work."""
        return all(puller.is_flowing for puller in self._pullers)

    @property
    def is_stopped(self) -> bool:
        """Whether no pull loop will deliver another message."""
        return all(puller.is_stopped for puller in self._pullers)

    async def start(self) -> None:
        """Start all pull loops."""
        await asyncio.gather(*(puller.start() for puller in self._pullers))

    async def stop(self, timeout_s: float) -> None:
        """Stop all pull loops; see `Puller.stop`."""
        await asyncio.gather(*(puller.stop(timeout_s) for puller in self._pullers))

    def wake(self) -> None:
        """Tell the pull loops that places became free."""
        for puller in self._pullers:
            puller.wake()
