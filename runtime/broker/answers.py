"""The answers of many to one request, within bounds: anybody may answer."""

from runtime.context import Reply
from runtime.message import Message

MOST_BYTES = 64_000_000
_BESIDE_BYTES = 1000
"""What an answer costs beside its data."""


class Answers:
    """Answers as they arrive.

    Attributes:
        replies: the answers, in their order; those beyond `MOST_BYTES` are dropped.
        is_cut: whether answers were dropped.
    """

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.is_cut = False
        self._left_bytes = MOST_BYTES
        self._says_silent = False

    @property
    def is_silent(self) -> bool:
        """Whether the server has said that nobody listens, and nobody has answered.

        Whoever listens can write what the server writes, so an answer refutes it.
        """
        return self._says_silent and not self.replies

    def add(self, message: Message) -> None:
        """Take an answer, or the server's word that nobody listens."""
        if message.headers.get("Status") == "503":
            self._says_silent = True
            return
        self._left_bytes -= len(message.data) + _BESIDE_BYTES
        self.is_cut = self._left_bytes < 0
        if not self.is_cut:
            self.replies.append(Reply(message.data, message.headers))


__all__ = ["MOST_BYTES", "Answers"]
