"""One ticker per host keeps every message alive that is here and not settled yet."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from runtime.broker.settler import Settler
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
    """Says `+WPI` for each held message well before its ack wait ends.

    A timer per message would cost more than the work (a peer removed its own for that reason); one
    pass over what is held twice a second costs nothing measurable. A message is extended until it
    is settled, which the function's time limit bounds.

    Attributes:
        task: extends what is held; a readiness probe asks whether it does.
        settler: says so to the server.
    """

    def __init__(self, settler: Settler) -> None:
        self.settler = settler
        self._held: list[Held] = []
        self.task = SupervisedTask(self._run, "in-progress ticker").start()

    def add(self, held: Held) -> None:
        """Keep these alive from now on."""
        self._held.append(held)

    def remove(self, held: Held) -> None:
        """Leave these alone from now on; nothing happens when they are not kept."""
        if held in self._held:
            self._held.remove(held)

    def due(self, now_s: float) -> list[Message]:
        """Those that are to be extended at this moment of the loop's clock, each told once.

        Another thread may ask, while the loop stands still.
        """
        due = []
        for held in self._held:
            due_s = now_s - held.ack_wait_s * SHARE_OF_ACK_WAIT
            for message in tuple(held.messages):
                if max(message.received_at_s, message.extended_at_s) < due_s:
                    message.extended_at_s = now_s
                    due.append(message)
        return due

    async def stop(self) -> None:
        """End the ticker."""
        await self.task.stop()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            for message in self.due(loop.time()):
                self.settler.in_progress(message)
