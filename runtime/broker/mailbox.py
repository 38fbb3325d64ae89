"""Mailboxes: each function's own queue for messages that wait, and for messages tried once more.

`mailbox.parked.{function}.{origin}` holds a message schedule whose target is
`mailbox.ready.{function}`, which the function's binding consumes beside its own stream. A schedule
replaces the one before on the same subject, so one message of one function is parked once, however
often an acknowledgement was lost.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil

from runtime.broker import headers as names
from runtime.broker import stored
from runtime.broker.clock import ServerClock
from runtime.broker.connection import ApiError, Broker
from runtime.broker.stream_configs import MAILBOX
from runtime.broker.streams import ensure_runtime_streams
from runtime.context import PubAck, Publication
from runtime.errors import PublishFailed, Unavailable
from runtime.message import Message

_SCHEDULE = "Nats-Schedule"
_TARGET = "Nats-Schedule-Target"
_REASON_CHARACTERS = 1024
_ROOM_FOR_IDS_BYTES = 400


@dataclass(frozen=True, slots=True)
class Parked:
    """A message that waits for its next attempt.

    Attributes:
        function: who will get it.
        sequence: its sequence in the mailbox stream, for `run_now` and `cancel`.
        due_at: when it comes back.
        reason: why it waits.
        message: with its origin; `attempt` is the one it waits for.
    """

    function: str
    sequence: int
    due_at: datetime
    reason: str
    message: Message


class Mailbox:
    """Parks, posts and restores messages; `ensure` or `detect_parking` learns what it can do.

    Attributes:
        is_full: whether messages had better wait in their own streams; set from outside.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._clock = ServerClock(broker, MAILBOX)
        self._supports_parking = False
        self.is_full = False

    @property
    def supports_parking(self) -> bool:
        """Whether the stream takes message schedules (nats-server 2.12 and up), and has room."""
        return self._supports_parking and not self.is_full

    async def ensure(self) -> None:
        """Make sure that the stream stands there.

        Raises:
            ConfigError: the server refused it.
            Unavailable: JetStream does not answer.
        """
        await ensure_runtime_streams(self._broker)
        await self.detect_parking()

    async def detect_parking(self) -> None:
        """Learn from a stream that somebody else created whether it takes schedules.

        Raises:
            ApiError: the stream does not exist.
            Unavailable: JetStream does not answer.
        """
        found = await self._broker.api(f"STREAM.INFO.{MAILBOX}")
        self._supports_parking = bool(found["config"].get("allow_msg_schedules"))

    async def park(
        self, message: Message, function: str, delay_s: float, reason: str = ""
    ) -> PubAck:
        """Store the message so that it comes back to this function alone after `delay_s`.

        Args:
            message: as the function got it; `attempt` counts the attempts made.
            function: who gets it again.
            delay_s: counted by the server's clock, which also ends it: this host's may be wrong.
            reason: one sentence for a person.

        Raises:
            PublishFailed: it is not stored, the server does not tell the time, or is older than
                message schedules.
        """
        subject = f"mailbox.parked.{function}.{message.origin}"
        if not self._supports_parking:
            raise PublishFailed(subject, "the mailbox stream takes no message schedules")
        try:
            due_at = await self._clock.now() + timedelta(seconds=max(0.0, delay_s))
        except (ApiError, Unavailable) as failure:
            raise PublishFailed(
                subject, f"JetStream does not tell the time: {failure}"
            ) from failure
        headers = {
            **mailbox_headers(message, function, message.attempt),
            names.REASON: names.escape(reason, _REASON_CHARACTERS),
            _SCHEDULE: f"@at {_timestamp(due_at)}",
            _TARGET: f"mailbox.ready.{function}",
        }
        msg_id = f"park-{identity_of(message, function)}-{message.attempt}"
        return await self._broker.publish(subject, message.data, msg_id=msg_id, headers=headers)

    async def post(self, message: Message, function: str) -> PubAck:
        """Have the function get the message at once, with all its attempts ahead of it.

        Raises:
            PublishFailed: it is not stored.
        """
        [ack] = await self.post_many([(message, function)])
        return ack

    async def post_many(self, items: Sequence[tuple[Message, str]]) -> list[PubAck]:
        """As `post`, for several, their confirmations awaited together.

        Raises:
            PublishFailed: at least one is not stored; posting all again doubles none.
        """
        return await self._broker.publish_many(
            [
                Publication(
                    subject=f"mailbox.ready.{function}",
                    data=message.data,
                    msg_id=f"post-{identity_of(message, function)}",
                    headers=mailbox_headers(message, function, 0),
                )
                for message, function in items
            ]
        )

    async def hand_over(self, message: Message, function: str, delay_s: float = 0.0) -> PubAck:
        """Have the function get the message again at once, as if this delivery had never been.

        Args:
            message: as it was delivered.
            function: who gets it again.
            delay_s: how long the next host lets an order of messages wait for this one.

        Raises:
            PublishFailed: it is not stored.
        """
        headers = mailbox_headers(message, function, max(0, message.attempt - 1))
        if delay_s > 0:
            headers[names.DELAY] = str(ceil(delay_s))
        return await self._broker.publish(
            f"mailbox.ready.{function}",
            message.data,
            # One delivery is handed over once; its reply subject is its own.
            msg_id=f"over-{function}-{message.reply}",
            headers=headers,
        )

    def fits(self, message: Message, function: str) -> bool:
        """Whether the server takes the message together with the headers that tell its origin."""
        headers = names.size_bytes(mailbox_headers(message, function, 0)) + _ROOM_FOR_IDS_BYTES
        return (
            headers <= names.LIMIT_BYTES
            and headers + len(message.data) <= self._broker.max_payload_bytes
        )

    def restore(self, message: Message) -> Message:
        """The message as its stream first stored it, from a delivery out of the mailbox.

        `reply` settles the mailbox's copy. `attempt` goes on counting: after n attempts before it
        was parked, its first delivery is attempt n + 1. What is no copy of ours is not changed.
        """
        origin = names.original(message)
        if origin is None:
            return message
        origin.attempt = names.number(message.headers, names.ATTEMPT) + message.attempt
        # A host that died between storing the copy and settling the original had the original
        # delivered again, so that not even the first delivery of a copy is the first for certain.
        origin.called_before = True
        return origin

    async def list_parked(self, function: str | None = None) -> AsyncIterator[Parked]:
        """What waits, of one function or of all, in the order in which it was parked.

        Raises:
            Unavailable: JetStream does not answer.
        """
        subject = f"mailbox.parked.{function or '*'}.>"
        async for message in stored.scan(self._broker, MAILBOX, subject):
            if (parked := self._read(message)) is not None:
                yield parked

    async def run_now(self, sequence: int) -> bool:
        """Make a parked message due now; False when it is no longer waiting.

        Raises:
            PublishFailed: it stays as it is.
            Unavailable: JetStream does not answer.
        """
        message = await self._waiting(sequence)
        if message is None:
            return False
        headers = {
            name: value for name, value in message.headers.items() if not name.startswith("Nats-")
        } | {
            _SCHEDULE: f"@at {_timestamp(await self._clock.now())}",
            _TARGET: message.headers[_TARGET],
            # Fired between our look and now, it must not be posted a second time.
            "Nats-Expected-Last-Subject-Sequence": str(sequence),
        }
        try:
            await self._broker.publish(
                message.subject, message.data, msg_id=f"run-now-{sequence}", headers=headers
            )
        except PublishFailed:
            if await self._waiting(sequence) is None:
                return False
            raise
        return True

    async def cancel(self, sequence: int) -> bool:
        """Give a parked message up for good; False when it is no longer waiting.

        Raises:
            Unavailable: JetStream does not answer.
        """
        if await self._waiting(sequence) is None:
            return False
        return await stored.delete(self._broker, MAILBOX, sequence)

    async def _waiting(self, sequence: int) -> Message | None:
        message = await stored.fetch(self._broker, MAILBOX, sequence)
        if message is None or _SCHEDULE not in message.headers:
            return None
        return message

    def _read(self, message: Message) -> Parked | None:
        try:
            due_ns = stored.parse_time_ns(message.headers.get(_SCHEDULE, "").removeprefix("@at "))
        except ValueError:
            return None
        return Parked(
            function=message.headers.get(names.FUNCTION, ""),
            sequence=message.sequence,
            due_at=datetime.fromtimestamp(due_ns / 1e9, tz=UTC),
            reason=names.unescape(message.headers.get(names.REASON, "")),
            message=self.restore(message),
        )


def mailbox_headers(message: Message, function: str, attempts: int) -> dict[str, str]:
    """The headers of a copy in the mailbox: its origin, whom it is for, attempts made so far."""
    return {
        **names.origin_headers(message),
        names.FUNCTION: function,
        names.ATTEMPT: str(attempts),
    }


def identity_of(message: Message, function: str) -> str:
    """What tells one message of one function from all others, the same on every delivery."""
    return f"{function}-{message.origin}-{names.number(message.headers, names.REDRIVES)}"


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
