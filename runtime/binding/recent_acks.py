"""What was acknowledged here of late, so that no second delivery of it is called."""

from collections import deque
from collections.abc import Sequence

from runtime.broker.ack_subject import Origin, origin_of
from runtime.message import Message

REMEMBERED = 8192
"""Acknowledged messages of one function: up to 4 MB."""


class RecentAcks:
    """Remembers the last messages that were done and acknowledged.

    An acknowledgement may come too late, as after a block of the event loop, or be lost with the
    connection; the server then delivers a message again that is done. What is remembered costs
    next to nothing until such a delivery comes: only then is it looked at.

    A consumer that was deleted and made anew replays what is done. It is noticed (`forget_all`)
    unless this process was connected and asked for nothing all the while; `forget` is for those.
    """

    def __init__(self) -> None:
        self._unread: deque[str] = deque(maxlen=REMEMBERED)
        self._read: dict[Origin, None] = {}

    def add(self, message: Message) -> None:
        """Remember one that was acknowledged."""
        self._unread.append(message.reply)

    def add_all(self, messages: Sequence[Message]) -> None:
        """Remember these."""
        self._unread.extend([message.reply for message in messages])

    def forget(self, message: Message) -> None:
        """Know nothing of one that was called again and failed, as in a replay of its stream."""
        if self.has(message):
            del self._read[origin_of(message.reply)]

    def forget_all(self, stream: str, durable: str) -> None:
        """Know nothing of a consumer that was made anew: what comes from it is a replay."""
        self._read_all()
        gone = [origin for origin in self._read if origin[:2] == (stream, durable)]
        for origin in gone:
            del self._read[origin]

    def has(self, message: Message) -> bool:
        """Whether another delivery of this very message was acknowledged here."""
        self._read_all()
        return origin_of(message.reply) in self._read

    def _read_all(self) -> None:
        while self._unread:
            self._read[origin_of(self._unread.popleft())] = None
        while len(self._read) > REMEMBERED:
            del self._read[next(iter(self._read))]
