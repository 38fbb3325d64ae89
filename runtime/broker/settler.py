"""Batches settlements and sends them together at the end of a turn of the event loop."""

import asyncio
import json
from collections.abc import Sequence

from runtime.broker.connection import Broker
from runtime.errors import Unavailable
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.settler")

_NS = 1_000_000_000
_ACK = b"+ACK"
IN_PROGRESS = b"+WPI"


class Settler:
    """Sends acks, naks, terms and in-progress signals in batches.

    Every method returns at once; one task sends the collected settlements. The server does not
    confirm settlements: a lost settlement leads to a redelivery, never to a lost message. Source of
    the payloads: NATS ADR-15.

    Attributes:
        task: the task that sends; the readiness probe checks it.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._queue: list[tuple[str, bytes]] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.task = SupervisedTask(self._run, "settler").start()

    def ack(self, message: Message) -> None:
        """Acknowledge: the message's effect is durable, so it is never delivered again."""
        self._add(message.reply, _ACK)

    def ack_all(self, messages: Sequence[Message]) -> None:
        """Acknowledge all these messages."""
        self._queue += [(message.reply, _ACK) for message in messages]
        if messages:
            self._begin()

    def nak(self, message: Message, delay_s: float) -> None:
        """Have the message delivered again after at least `delay_s`."""
        self._add(message.reply, b"-NAK " + json.dumps({"delay": int(delay_s * _NS)}).encode())

    def term(self, message: Message, reason: str) -> None:
        """End redelivery; the server's MSG_TERMINATED advisory shows the reason."""
        line = " ".join(reason.split())[:256]
        # The reason may be a function's text: half a surrogate pair cannot be encoded in UTF-8.
        self._add(message.reply, f"+TERM {line}".encode("utf-8", "backslashreplace"))

    def in_progress(self, message: Message) -> None:
        """Restart the message's ack wait: it is still being worked on."""
        self._add(message.reply, IN_PROGRESS)

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has read all settlements so far, at most `timeout_s`."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
            await self._broker.flush(timeout_s)
        except (TimeoutError, Unavailable):
            log.warning("Settlements may be lost, their messages will be delivered again")

    async def stop(self, timeout_s: float) -> None:
        """Send the remaining settlements, then stop."""
        await self.flush(timeout_s)
        await self.task.stop()

    def _add(self, reply: str, payload: bytes) -> None:
        self._queue.append((reply, payload))
        if len(self._queue) == 1:
            self._begin()

    def _begin(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            queue, self._queue = self._queue, []
            try:
                await self._broker.send_all(queue)
            except Unavailable as failure:
                log.warning(
                    "Settlements not sent, their messages will be delivered again",
                    reason=failure.reason,
                )
            finally:
                if not self._queue:
                    self._idle.set()
