"""Starts and stops the pull loops of one function, one for each of its consumers."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from runtime.binding.buffer import Places, PrefetchBuffer
from runtime.broker.connection import Broker
from runtime.broker.pull_source import PullSource
from runtime.broker.puller import Puller, Slots
from runtime.message import Message

DRAIN_S = 5.0
"""Time for messages that the server has sent: more than enough, unless the connection is lost."""


class Stage(Protocol):
    """One step of a message's admission."""

    def admit(self, message: Message, places: Places) -> bool:
        """Whether the message goes on; if not, this stage holds it in the buffer.

        Args:
            message: the message as the pull loop delivered it.
            places: the pull loop's places, of which the message takes one.
        """


class PullerSet:
    """The pull loops of one function, until stopped.

    Each delivered message passes the stages of its pull loop, in order, into the buffer.

    Args:
        broker: the connection.
        buffer: the buffer in which a message waits for its call.
        renewed: called with the stream and name of a consumer that was created anew.
        failed: called with a message that could not be admitted, and the exception.
    """

    def __init__(
        self,
        broker: Broker,
        buffer: PrefetchBuffer,
        *,
        renewed: Callable[[str, str], None],
        failed: Callable[[Message, Exception], None],
    ) -> None:
        self._broker = broker
        self._buffer = buffer
        self._renewed = renewed
        self._failed = failed
        self._pullers: list[Puller] = []
        self._loop = asyncio.get_running_loop()
        self._is_check_due = False

    def add(
        self, source: PullSource, places: Places, slots: Slots, stages: Sequence[Stage] = ()
    ) -> None:
        """Add a pull loop for a consumer.

        Args:
            source: the consumer.
            places: counts its held messages.
            slots: the room for its pull requests.
            stages: the stages that its messages pass.
        """
        restore, add = source.restore, self._buffer.add

        def deliver(message: Message) -> None:
            try:
                if restore is not None:
                    message = restore(message)
                for stage in stages:
                    if not stage.admit(message, places):
                        return
                add(message, places)
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
        """Tell the pull loops that places became free.

        They are asked once in a turn of the event loop, after the messages that end in it: a
        function with a key has 18 of them, and a check costs 2 µs for each.
        """
        if not self._is_check_due:
            self._is_check_due = True
            self._loop.call_soon(self._check)

    def _check(self) -> None:
        self._is_check_due = False
        for puller in self._pullers:
            puller.wake()
