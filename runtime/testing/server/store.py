"""The messages of one stream in memory, with the stream's limits."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.subjects import matches
from runtime.testing.server.errors import Refused


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored message.

    Attributes:
        block: the header block, from `NATS/1.0`; empty without headers.
        headers: the parsed headers.
    """

    sequence: int
    subject: str
    block: bytes
    headers: Mapping[str, str]
    data: bytes
    stored_at_ns: int

    @property
    def size_bytes(self) -> int:
        """What the message counts towards `max_bytes`, about."""
        return len(self.subject) + len(self.block) + len(self.data) + 22


class Store:
    """Messages by sequence, and the sequences of each subject.

    Args:
        config: the stream's configuration, read at each use.
        removed: called for each message that is removed, for whatever reason.
    """

    def __init__(
        self, config: Callable[[], Mapping[str, Any]], removed: Callable[[Stored], None]
    ) -> None:
        self._config = config
        self._removed = removed
        self._messages: dict[int, Stored] = {}
        self._by_subject: dict[str, dict[int, None]] = {}
        self.last_sequence = 0
        self.last_at_ns = 0
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Stored]:
        return iter(list(self._messages.values()))

    def get(self, sequence: int) -> Stored | None:
        """The message with this sequence."""
        return self._messages.get(sequence)

    def first(self) -> Stored | None:
        """The oldest message."""
        return next(iter(self._messages.values()), None)

    def last_on(self, pattern: str) -> Stored | None:
        """The newest message on a subject, which may have wildcards."""
        best = max(
            (
                max(found)
                for subject, found in self._by_subject.items()
                if matches(pattern, subject)
            ),
            default=0,
        )
        return self._messages.get(best)

    def next_on(self, patterns: tuple[str, ...], sequence: int) -> Stored | None:
        """The first message from a sequence on that matches one pattern; all without patterns."""
        wanted = self._messages.get(sequence)
        if wanted is not None and _is_on(wanted.subject, patterns):
            return wanted
        if sequence > self.last_sequence:
            return None
        for number, message in self._messages.items():
            if number >= sequence and _is_on(message.subject, patterns):
                return message
        return None

    def count_from(self, patterns: tuple[str, ...], sequence: int) -> int:
        """How many messages from a sequence on match."""
        if sequence > self.last_sequence:
            return 0
        count = 0
        for subject, found in self._by_subject.items():
            if _is_on(subject, patterns):
                # From the newest on: a consumer has seen most of the older ones.
                for number in reversed(found):
                    if number < sequence:
                        break
                    count += 1
        return count

    def subjects(self, pattern: str) -> dict[str, int]:
        """The number of messages of each matching subject."""
        found = ((subject, len(each)) for subject, each in self._by_subject.items())
        return {subject: count for subject, count in found if matches(pattern, subject)}

    def add(
        self, subject: str, block: bytes, headers: Mapping[str, str], data: bytes, now_ns: int
    ) -> Stored:
        """Store a message; older messages go where a limit says so.

        Raises:
            Refused: the stream is full and discards new messages.
        """
        message = Stored(self.last_sequence + 1, subject, block, headers, data, now_ns)
        self._check_room(message)
        self.last_sequence, self.last_at_ns = message.sequence, now_ns
        self._messages[message.sequence] = message
        self._by_subject.setdefault(subject, {})[message.sequence] = None
        self.size_bytes += message.size_bytes
        self._keep_limits(subject)
        return message

    def remove(self, sequence: int) -> bool:
        """Remove a message; return False when it is gone."""
        message = self._messages.pop(sequence, None)
        if message is None:
            return False
        self.size_bytes -= message.size_bytes
        of_subject = self._by_subject[message.subject]
        del of_subject[sequence]
        if not of_subject:
            del self._by_subject[message.subject]
        self._removed(message)
        return True

    def expire(self, before_ns: int) -> None:
        """Remove the messages that were stored before a time."""
        while (first := self.first()) is not None and first.stored_at_ns <= before_ns:
            self.remove(first.sequence)

    def keep_limits(self) -> None:
        """Apply limits that were lowered."""
        for subject in list(self._by_subject):
            self._keep_limits(subject)

    def _check_room(self, message: Stored) -> None:
        config = self._config()
        if config.get("discard") != "new":
            return
        if 0 < config.get("max_msgs", -1) <= len(self._messages):
            raise Refused(503, 10077, "maximum messages exceeded")
        if 0 < config.get("max_bytes", -1) < self.size_bytes + message.size_bytes:
            raise Refused(503, 10077, "maximum bytes exceeded")

    def _keep_limits(self, subject: str) -> None:
        config = self._config()
        most = config.get("max_msgs_per_subject", -1)
        of_subject = self._by_subject.get(subject, {})
        while 0 < most < len(of_subject):
            self.remove(next(iter(of_subject)))
        if config.get("discard") == "new":
            return
        while 0 < config.get("max_msgs", -1) < len(self._messages):
            self.remove(next(iter(self._messages)))
        while 0 < config.get("max_bytes", -1) < self.size_bytes and self._messages:
            self.remove(next(iter(self._messages)))


def _is_on(subject: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(matches(pattern, subject) for pattern in patterns)
