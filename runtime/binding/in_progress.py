"""Extends the ack wait of every held message of a process, also while the event loop is blocked."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass

from runtime.broker.connection import Broker
from runtime.broker.settler import IN_PROGRESS, Settler
from runtime.message import Message
from runtime.supervised_task import SupervisedTask

TICK_S = 0.5
SHARE_OF_ACK_WAIT = 1 / 3


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """The messages that one function holds, and their consumer's ack wait in seconds."""

    messages: Collection[Message]
    ack_wait_s: float


class InProgressTicker:
    """Sends `+WPI` for each held message well before its ack wait ends.

    A timer for each message would cost more than the work (another library removed its own for that
    reason); one pass over the held messages twice a second costs nothing measurable. A message is
    extended until it is settled; the function's time limit bounds that.

    Attributes:
        task: the task that extends messages; the readiness probe checks it.
        settler: sends the signals.
    """

    def __init__(self, settler: Settler) -> None:
        self.settler = settler
        self._held: list[Held] = []
        self.task = SupervisedTask(self._run, "in-progress ticker").start()

    def add(self, held: Held) -> None:
        """Start to extend these messages."""
        self._held.append(held)

    def remove(self, held: Held) -> None:
        """Stop extending these messages; nothing happens when they were not added."""
        if held in self._held:
            self._held.remove(held)

    def due(self, now_s: float) -> list[Message]:
        """The messages to extend at this time of the loop's clock, each returned once.

        Another thread may call this while the loop is blocked.
        """
        due = []
        for held in self._held:
            due_s = now_s - held.ack_wait_s * SHARE_OF_ACK_WAIT
            for message in tuple(held.messages):
                if max(message.received_at_s, message.extended_at_s) < due_s:
                    message.extended_at_s = now_s
                    due.append(message)
        return due

    def keep_alive(self, broker: Broker, *, is_at_work: bool) -> None:
        """Send PONG and `+WPI`, in place of the blocked event loop; called by another thread.

        A few calls a second keep the connection and the held messages, with one exception: when the
        running function blocks for longer than its time limit, the messages are redelivered to
        other hosts, as they would be if the call were cancelled.

        Args:
            broker: the connection.
            is_at_work: whether a function is running within its time limit.
        """
        due = self.due(time.monotonic()) if is_at_work else []
        broker.keep_alive([(message.reply, IN_PROGRESS) for message in due])

    async def stop(self) -> None:
        """End the ticker."""
        await self.task.stop()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            for message in self.due(loop.time()):
                self.settler.in_progress(message)
