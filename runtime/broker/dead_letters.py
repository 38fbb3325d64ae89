"""Stores, lists, deletes and redrives dead letters: messages that were given up."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from runtime.broker import headers as names
from runtime.broker import stored
from runtime.broker.connection import ApiError, Broker
from runtime.broker.mailbox import Mailbox
from runtime.broker.stream_configs import DEAD_LETTERS, MAILBOX
from runtime.broker.streams import ensure_runtime_streams
from runtime.context import PubAck
from runtime.errors import ConfigError, Problem, Unsendable
from runtime.message import Message
from runtime.subjects import covers

_TRACEBACK_CHARACTERS = 6_000
"""Counted from the end, where the frames that failed are."""
_REASON_CHARACTERS = 2_000
_FIRST_REASON_CHARACTERS = 256
_ROOM_FOR_IDS_BYTES = 500
"""Reserved for the message id and the tail's sequence, which are added last."""
_CHUNK = 100
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class FirstFailure:
    """The first of several failures of a message: sequence of the dead letter, time and reason."""

    sequence: int
    failed_at: datetime
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that a function gave up.

    Attributes:
        function: the function that gave the message up, and that gets it again by a redrive.
        message: the message as its stream first stored it.
        code: reason code, such as `UNKNOWN_ROUTE`, or `MAX_DELIVERIES` when every attempt ended
            without a settlement.
        reason: one sentence for a person.
        error_type: class of the exception; empty when there was none.
        traceback: the last part of the traceback; empty when there was none.
        attempts: number of deliveries.
        failed_at: when the message was given up.
        sequence: the dead letter's sequence in its stream; 0 before it is stored.
    """

    function: str
    message: Message
    code: str
    reason: str = ""
    error_type: str = ""
    traceback: str = ""
    attempts: int = 1
    failed_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    sequence: int = 0

    @property
    def redrives(self) -> int:
        """How often the message had been redriven before this failure."""
        return names.number(self.message.headers, names.REDRIVES)

    @property
    def first_dead_letter(self) -> int:
        """The sequence of the message's first dead letter; its own when this is the first."""
        return names.number(self.message.headers, names.FIRST_DEAD_LETTER) or self.sequence

    @property
    def first_failure(self) -> FirstFailure:
        """The first failure of a redriven message; the redrive deleted its dead letter."""
        kept = self.message.headers
        if not self.redrives:
            return FirstFailure(self.sequence, self.failed_at, self.code, self.reason)
        try:
            failed_at = datetime.fromisoformat(kept.get(names.FIRST_TIME, ""))
        except ValueError:
            failed_at = self.failed_at
        reason = names.unescape(kept.get(names.FIRST_REASON, ""))
        return FirstFailure(
            self.first_dead_letter, failed_at, kept.get(names.FIRST_CODE, ""), reason
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """A filter of dead letters; all given fields must match.

    Attributes:
        function: the function that failed.
        code: the reason code.
        since: only failures at this time or later.
        until: only failures before this time.
        subject: the original subject; may have wildcards.
    """

    function: str | None = None
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    subject: str | None = None

    def has(self, letter: DeadLetter) -> bool:
        """Whether the dead letter matches."""
        return (
            self.function in (None, letter.function)
            and self.code in (None, letter.code)
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
            and (self.subject is None or covers(self.subject, letter.message.subject))
        )

    @property
    def stored_on(self) -> str:
        """The subject in the dead-letter stream on which all matching dead letters are stored."""
        return f"dead_letters.{self.function or '*'}"


EVERY = Selection()


@dataclass(frozen=True, slots=True)
class Redriven:
    """The result of a redrive.

    Attributes:
        posted: number of messages sent to their functions; their dead letters are deleted.
        too_large: sequences of dead letters that stay, because the message with the headers that
            name its origin is larger than the server accepts.
    """

    posted: int
    too_large: tuple[int, ...]


class DeadLetters:
    """Stores, lists, deletes and redrives dead letters."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._mailbox = Mailbox(broker)

    async def ensure(self) -> None:
        """Create or update the streams.

        Raises:
            ConfigError: the server refused a stream.
            Unavailable: JetStream does not answer.
        """
        await ensure_runtime_streams(self._broker)

    async def store(self, letter: DeadLetter) -> PubAck:
        """Store the message with its bytes and headers; storing it twice makes one dead letter.

        A failure after a redrive makes a new dead letter, which names the first.

        Raises:
            PublishFailed, Unsendable: the dead letter is not stored, so the message must not be
                settled.
        """
        message = letter.message
        most_bytes = self._broker.max_payload_bytes
        # At most half for the headers: then either half of the payload fits beside them.
        headers = _headers(letter, min(names.LIMIT_BYTES, most_bytes // 2) - _ROOM_FOR_IDS_BYTES)
        msg_id = _msg_id(letter)
        room = max(0, most_bytes - names.size_bytes(headers) - _ROOM_FOR_IDS_BYTES)
        subject = f"dead_letters.{letter.function}"
        if len(message.data) > room:
            # The server accepted the message without these headers; with them it would be too
            # large.
            tail_id = f"{msg_id}-tail" if msg_id else None
            # The subject says whose it is, should this host end before the letter is stored.
            tail_headers = {names.TAIL: "end", names.SUBJECT: headers[names.SUBJECT]}
            tail = await self._broker.publish(
                f"{subject}.tail", message.data[room:], msg_id=tail_id, headers=tail_headers
            )
            headers[names.TAIL] = str(tail.sequence)
        return await self._broker.publish(
            subject, message.data[:room], msg_id=msg_id, headers=headers
        )

    async def list(self, selection: Selection = EVERY) -> AsyncIterator[DeadLetter]:
        """Iterate over the matching dead letters, oldest first.

        Raises:
            Unavailable: JetStream does not answer.
        """
        async for message in stored.scan(self._broker, DEAD_LETTERS, selection.stored_on):
            letter = await self._read(message)
            if letter is not None and selection.has(letter):
                yield letter

    async def get(self, sequence: int) -> DeadLetter | None:
        """The dead letter with this sequence; None when there is none.

        Raises:
            Unavailable: JetStream does not answer.
        """
        message = await stored.fetch(self._broker, DEAD_LETTERS, sequence)
        return await self._read(message) if message is not None else None

    async def as_redriven(self, message: Message, function: str) -> Message:
        """The message as if it had been redriven once more than any of its dead letters.

        So another failure of it makes a dead letter of its own.

        Raises:
            Unavailable: JetStream does not answer.
        """
        listed = self.list(Selection(function=function))
        known = [each.redrives async for each in listed if each.message.origin == message.origin]
        redrives = max([names.number(message.headers, names.REDRIVES), *known]) + 1
        return replace(message, headers={**message.headers, names.REDRIVES: str(redrives)})

    async def counts(self) -> dict[str, int]:
        """The number of dead letters of each function that has any.

        Raises:
            Unavailable: JetStream does not answer.
        """
        payload = {"subjects_filter": "dead_letters.*"}
        info = await self._ask(f"STREAM.INFO.{DEAD_LETTERS}", payload)
        if info is None:
            return {}
        subjects: dict[str, int] = info["state"].get("subjects") or {}
        return {subject.split(".", 1)[1]: count for subject, count in subjects.items()}

    async def purge(
        self,
        selection: Selection = EVERY,
        *,
        sequences: Sequence[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Delete the matching dead letters; return their number.

        Args:
            selection: the filter.
            sequences: if given, only these of the matching ones.
            on_progress: called with the number deleted so far.

        Raises:
            Unavailable: JetStream does not answer.
        """
        if not sequences and selection == Selection(function=selection.function):
            await self._purge(f"{selection.stored_on}.tail")
            return await self._purge(selection.stored_on)
        removed = 0
        async for letter in self.choose(selection, sequences):
            removed += await self._remove(letter)
            if on_progress is not None:
                on_progress(removed)
        return removed

    async def redrive(
        self,
        selection: Selection = EVERY,
        *,
        sequences: Sequence[int] = (),
        on_progress: Callable[[int], None] | None = None,
    ) -> Redriven:
        """Send messages again to the functions that gave them up, and to no other function.

        Each message gets all its attempts anew and keeps its identity. A repeated redrive, also
        after an interrupted one, sends no message twice.

        Args:
            selection: the filter.
            sequences: if given, only these of the matching ones.
            on_progress: called with the number posted so far.

        Raises:
            ConfigError: a function has no mailbox: it was never bound by a host on this server.
            PublishFailed: messages that were not posted stay dead letters.
            Unavailable: JetStream does not answer.
        """
        posted, too_large = 0, []
        chunk: list[DeadLetter] = []
        known: set[str] = set()
        async for letter in self.choose(selection, sequences):
            if letter.function not in known:
                await self.check_mailbox(letter.function)
                known.add(letter.function)
            if not self._mailbox.fits(_again(letter), letter.function):
                too_large.append(letter.sequence)
                continue
            chunk.append(letter)
            if len(chunk) == _CHUNK:
                posted += await self._post(chunk)
                chunk = []
                if on_progress is not None:
                    on_progress(posted)
        posted += await self._post(chunk)
        if on_progress is not None:
            on_progress(posted)
        return Redriven(posted, tuple(too_large))

    async def choose(
        self, selection: Selection, sequences: Sequence[int] = ()
    ) -> AsyncIterator[DeadLetter]:
        """As `list`; with `sequences`, only these dead letters, in the order of `sequences`.

        Raises:
            Unavailable: JetStream does not answer.
        """
        if not sequences:
            async for letter in self.list(selection):
                yield letter
        for sequence in sequences:
            found = await self.get(sequence)
            if found is not None and selection.has(found):
                yield found

    async def _post(self, letters: Sequence[DeadLetter]) -> int:
        if letters:
            await self._mailbox.post_many([(_again(each), each.function) for each in letters])
            await asyncio.gather(*(self._remove(each) for each in letters))
        return len(letters)

    async def check_mailbox(self, function: str) -> None:
        """Check that hosts of this server have bound the function to a consumer.

        Raises:
            ConfigError: it has no mailbox, so no host would get a message in it.
        """
        try:
            await self._broker.api(f"CONSUMER.INFO.{MAILBOX}.{function}")
        except (ApiError, Unsendable) as error:
            if isinstance(error, ApiError) and error.code != _NOT_FOUND:
                raise
            problem = Problem(
                f"function {function}",
                "",
                "it has no mailbox on this server, so no host would get the messages",
                "serve a manifest that binds it to a consumer, then run this again",
            )
            raise ConfigError([problem]) from error

    async def _remove(self, letter: DeadLetter) -> bool:
        tail = await stored.fetch(self._broker, DEAD_LETTERS, letter.sequence)
        removed = await stored.delete(self._broker, DEAD_LETTERS, letter.sequence)
        if tail is not None and (sequence := names.number(tail.headers, names.TAIL)):
            await stored.delete(self._broker, DEAD_LETTERS, sequence)
        return removed

    async def _purge(self, subject: str) -> int:
        answer = await self._ask(f"STREAM.PURGE.{DEAD_LETTERS}", {"filter": subject})
        return int(answer["purged"]) if answer is not None else 0

    async def _ask(self, subject: str, payload: dict[str, str]) -> dict[str, Any] | None:
        """The answer; None when the stream is missing because no host has run yet."""
        try:
            return await self._broker.api(subject, payload)
        except ApiError as error:
            if error.code == _NOT_FOUND:
                return None
            raise

    async def _read(self, copy: Message) -> DeadLetter | None:
        """The dead letter; None for another stored message, or when the payload's end is gone."""
        data = copy.data
        if sequence := names.number(copy.headers, names.TAIL):
            tail = await stored.fetch(self._broker, DEAD_LETTERS, sequence)
            if tail is None:
                return None
            data += tail.data
        origin = names.original(copy, data)
        return _letter(copy, origin) if origin is not None else None


def _letter(copy: Message, origin: Message) -> DeadLetter:
    headers = copy.headers
    try:
        failed_ns = stored.parse_time_ns(headers.get(names.TIME, ""))
    except ValueError:
        failed_ns = copy.stored_at_ns
    attempts = names.number(headers, names.ATTEMPT)
    origin.attempt = attempts
    return DeadLetter(
        function=headers.get(names.FUNCTION, ""),
        message=origin,
        code=headers.get(names.CODE, ""),
        reason=names.unescape(headers.get(names.REASON, "")),
        error_type=headers.get(names.ERROR_TYPE, ""),
        traceback=names.unescape(headers.get(names.TRACEBACK, "")),
        attempts=attempts,
        failed_at=datetime.fromtimestamp(failed_ns // 1000 / 1e6, tz=UTC),
        sequence=copy.sequence,
    )


def _headers(letter: DeadLetter, limit_bytes: int) -> dict[str, str]:
    stated = {
        names.FUNCTION: letter.function,
        names.CODE: names.escape(letter.code, 128),
        names.REASON: names.escape(letter.reason, _REASON_CHARACTERS),
        names.ATTEMPT: str(letter.attempts),
        names.TIME: letter.failed_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    if letter.error_type:
        stated[names.ERROR_TYPE] = names.escape(letter.error_type, 256)
    if letter.traceback:
        last = letter.traceback[-_TRACEBACK_CHARACTERS:]
        stated[names.TRACEBACK] = names.escape(last, 2 * _TRACEBACK_CHARACTERS)
    return _fitted({**names.origin_headers(letter.message), **stated}, set(stated), limit_bytes)


def _fitted(headers: dict[str, str], ours: set[str], limit_bytes: int) -> dict[str, str]:
    """Drop headers, largest first, until the rest can be stored; name the dropped ones in `CUT`.

    Original headers and the traceback are dropped alike; the reason is dropped last.
    """
    kept = ours - {names.TRACEBACK} | {names.STREAM, names.SEQUENCE, names.SUBJECT, names.STORED_AT}
    others = sorted(headers.keys() - kept, key=lambda name: len(headers[name]), reverse=True)
    cut: list[str] = []
    for name in (*others, names.REASON):
        if names.size_bytes(headers) <= limit_bytes:
            break
        if headers.pop(name, None) is not None:
            cut.append(name)
            headers[names.CUT] = names.escape(", ".join(cut), 512)
    return headers


def _msg_id(letter: DeadLetter) -> str | None:
    message = letter.message
    if not message.stream:
        return None
    return f"dead-{letter.function}-{message.origin}-{letter.redrives}"


def _again(letter: DeadLetter) -> Message:
    """The message to redrive, with a header that names its first dead letter."""
    headers = dict(letter.message.headers)
    if not letter.redrives:
        headers[names.FIRST_DEAD_LETTER] = str(letter.sequence)
        headers[names.FIRST_CODE] = letter.code
        headers[names.FIRST_REASON] = names.escape(letter.reason, _FIRST_REASON_CHARACTERS)
        headers[names.FIRST_TIME] = letter.failed_at.isoformat()
    headers[names.REDRIVES] = str(letter.redrives + 1)
    return replace(letter.message, headers=headers)
