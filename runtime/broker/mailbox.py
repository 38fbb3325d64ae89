"""Mailbox: a function's own queue of parked, handed over and redriven messages.

`mailbox.parked.{function}.{origin}` holds a message schedule whose target is
`mailbox.ready.{function}`, which the function's binding consumes beside its own stream. A schedule
replaces the schedule before on the same subject, so one message of one function is parked once,
even when an acknowledgement was lost.
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
        function: the function that will get the message.
        sequence: the message's sequence in the mailbox stream, for `run_now` and `cancel`.
        due_at: when the message is delivered again.
        reason: why the message waits.
        message: as its stream first stored it; `attempt` is the next attempt.
    """

    function: str
    sequence: int
    due_at: datetime
    reason: str
    message: Message


class Mailbox:
    """Parks, posts and restores messages; `ensure` or `detect_parking` finds out what is supported.

    Attributes:
        is_full: whether messages should wait in their own streams instead; set from outside.
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
        """Create or update the stream.

        Raises:
            ConfigError: the server refused the stream.
            Unavailable: JetStream does not answer.
        """
        await ensure_runtime_streams(self._broker)
        await self.detect_parking()

    async def detect_parking(self) -> None:
        """Find out whether an existing stream takes message schedules.

        Raises:
            ApiError: the stream does not exist.
            Unavailable: JetStream does not answer.
        """
        found = await self._broker.api(f"STREAM.INFO.{MAILBOX}")
        self._supports_parking = bool(found["config"].get("allow_msg_schedules"))

    async def park(
        self,
        message: Message,
        function: str,
        delay_s: float,
        reason: str = "",
        *,
        counts: bool = True,
    ) -> PubAck:
        """Store the message so that this function alone gets it again after `delay_s`.

        Args:
            message: the message as the function got it; `attempt` counts the attempts made.
            function: the function that gets it again.
            delay_s: counted by the server's clock: this host's clock may be wrong.
            reason: one sentence for a person.
            counts: whether the last call was an attempt.

        Raises:
            PublishFailed: the message is not stored, the server does not tell the time, or is older
                than message schedules.
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
            **mailbox_headers(message, function, message.attempt - (not counts)),
            names.REASON: names.escape(reason, _REASON_CHARACTERS),
            _SCHEDULE: f"@at {_timestamp(due_at)}",
            _TARGET: f"mailbox.ready.{function}",
        }
        msg_id = f"park-{identity_of(message, function)}-{message.attempt}"
        if not counts:
            # The same attempt may be postponed many times, each time as one delivery of its own.
            msg_id = f"{msg_id}-{message.reply}"
        return await self._broker.publish(subject, message.data, msg_id=msg_id, headers=headers)

    async def post(self, message: Message, function: str, *, msg_id: str | None = None) -> PubAck:
        """Store the message so that the function gets it at once, with all its attempts anew.

        Args:
            message: the message as its stream first stored it.
            function: the function that gets it.
            msg_id: in place of the message's identity, by which the same message is stored once.

        Raises:
            PublishFailed: it is not stored.
        """
        [ack] = await self._broker.publish_many([_posted(message, function, msg_id)])
        return ack

    async def post_many(self, items: Sequence[tuple[Message, str]]) -> list[PubAck]:
        """As `post`, for several, their confirmations awaited together.

        Raises:
            PublishFailed: at least one message is not stored; posting all again stores none twice.
        """
        return await self._broker.publish_many([_posted(*item) for item in items])

    async def hand_over(self, message: Message, function: str, delay_s: float = 0.0) -> PubAck:
        """Store the message so that this delivery uses up no attempt of it.

        Args:
            message: the message as it was delivered.
            function: the function that gets it again.
            delay_s: how long the next host waits before it may call the function.

        Raises:
            PublishFailed: it is not stored.
        """
        headers = mailbox_headers(message, function, max(0, message.attempt - 1))
        if delay_s > 0:
            headers[names.DELAY] = str(ceil(delay_s))
        return await self._broker.publish(
            f"mailbox.ready.{function}",
            message.data,
            # One delivery is handed over once; its reply subject is unique.
            msg_id=f"over-{function}-{message.reply}",
            headers=headers,
        )

    def fits(self, message: Message, function: str) -> bool:
        """Whether the server takes the message together with the headers that name its origin."""
        headers = names.size_bytes(mailbox_headers(message, function, 0)) + _ROOM_FOR_IDS_BYTES
        return (
            headers <= names.LIMIT_BYTES
            and headers + len(message.data) <= self._broker.max_payload_bytes
        )

    def restore(self, message: Message) -> Message:
        """The message as its stream first stored it, from a delivery of its copy in the mailbox.

        `reply` settles the mailbox's copy. `attempt` goes on counting: after n attempts before the
        message was parked, the copy's first delivery is attempt n + 1. A message that is not a copy
        is not changed.
        """
        origin = names.original(message)
        if origin is None:
            return message
        origin.attempt = names.number(message.headers, names.ATTEMPT) + message.attempt
        # When a host dies between storing the copy and settling the original, the original is
        # delivered again, so even the first delivery of a copy may follow an earlier call.
        origin.called_before = True
        return origin

    async def list_parked(self, function: str | None = None) -> AsyncIterator[Parked]:
        """The parked messages of one function or of all, in the order in which they were parked.

        Raises:
            Unavailable: JetStream does not answer.
        """
        subject = f"mailbox.parked.{function or '*'}.>"
        async for message in stored.scan(self._broker, MAILBOX, subject):
            if (parked := self._read(message)) is not None:
                yield parked

    async def run_now(self, sequence: int) -> bool:
        """Make a parked message due now; return False when it no longer waits.

        Raises:
            PublishFailed: the message stays parked.
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
            # A schedule that has fired since it was read must not post the message a second time.
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
        """Delete a parked message; return False when it no longer waits.

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


def _posted(message: Message, function: str, msg_id: str | None = None) -> Publication:
    return Publication(
        subject=f"mailbox.ready.{function}",
        data=message.data,
        msg_id=msg_id or f"post-{identity_of(message, function)}",
        headers=mailbox_headers(message, function, 0),
    )


def mailbox_headers(message: Message, function: str, attempts: int) -> dict[str, str]:
    """The headers of a copy in the mailbox: origin, function, number of attempts made."""
    return {
        **names.origin_headers(message),
        names.FUNCTION: function,
        names.ATTEMPT: str(attempts),
    }


def identity_of(message: Message, function: str) -> str:
    """The identity of one message of one function, the same on every delivery."""
    return f"{function}-{message.origin}-{names.number(message.headers, names.REDRIVES)}"


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
