"""Set of recently acknowledged messages, so that a second delivery is not called again."""

from collections import deque
from collections.abc import Sequence

from runtime.broker.ack_subject import Origin, origin_of
from runtime.message import Message

REMEMBERED = 8192
"""The most messages kept of one function: up to 4 MB."""


class RecentAcks:
    """Remembers the last acknowledged messages of a function.

    An acknowledgement may come too late, as after a block of the event loop, or be lost with the
    connection; then the server delivers a done message again. Adding costs almost nothing: the
    entries are parsed only when a redelivery comes.

    A consumer that was deleted and created anew replays done messages. The pull loop detects that
    (`forget_all`), unless this process stayed connected without a pull request; `forget` covers
    that case.
    """

    def __init__(self) -> None:
        self._unread: deque[str] = deque(maxlen=REMEMBERED)
        self._read: dict[Origin, None] = {}

    def add(self, message: Message) -> None:
        """Add an acknowledged message."""
        self._unread.append(message.reply)

    def add_all(self, messages: Sequence[Message]) -> None:
        """Remember these."""
        self._unread.extend([message.reply for message in messages])

    def forget(self, message: Message) -> None:
        """Remove a message that was called again and failed, as in a replay of its stream."""
        if self.has(message):
            del self._read[origin_of(message.reply)]

    def forget_all(self, stream: str, durable: str) -> None:
        """Remove the messages of a consumer that was created anew: its deliveries are a replay."""
        self._read_all()
        gone = [origin for origin in self._read if origin[:2] == (stream, durable)]
        for origin in gone:
            del self._read[origin]

    def has(self, message: Message) -> bool:
        """Whether another delivery of this message was acknowledged by this process."""
        self._read_all()
        return origin_of(message.reply) in self._read

    def _read_all(self) -> None:
        while self._unread:
            self._read[origin_of(self._unread.popleft())] = None
        while len(self._read) > REMEMBERED:
            del self._read[next(iter(self._read))]
