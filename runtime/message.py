"""Messages: one delivery as the broker layer passes it on, and the typed views for functions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Generic, TypeVar, overload

from runtime.errors import Reject, Retry, Steering

T = TypeVar("T")

NO_HEADERS: Mapping[str, str] = {}
DUE_AT = "Runtime-Due-At"
"""Header of a scheduled function's tick: the time it was due, in ISO 8601."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a message is not a valid NATS message.

    Attributes:
        reason: one sentence for a person.
        header_block: the bytes of the headers when they cannot be parsed; else empty.
    """

    reason: str
    header_block: bytes = b""


@dataclass(slots=True, eq=False)
class Message:
    """One delivery of one stored message, or one request to an endpoint.

    `stream`, `sequence`, `subject` and `stored_at_ns` name the message where it was first stored,
    also when it comes back through the mailbox (parked or redriven), so they are the same on every
    delivery.

    Attributes:
        subject: the subject it was published on. Bytes that are not UTF-8 are surrogates, as in
            `os.fsdecode`; likewise in the headers.
        data: the payload, unchanged.
        headers: one value per key; never None.
        reply: subject for the settlement (JetStream) or the answer (request); empty when neither.
        stream: the stream that stores it; empty for a request.
        sequence: its sequence in that stream, from 1; 0 for a request.
        attempt: 1 for the first delivery.
        called_before: whether the function may have been called before although `attempt` is 1.
        stored_at_ns: nanoseconds since 1970 UTC at which the stream stored it; 0 for a request.
        received_at_s: time of the event loop's clock at which it arrived.
        extended_at_s: time of the same clock at which its ack wait last started anew; 0 for never.
        size_bytes: approximate size in memory, headers included; 0 for a request.
        delay_s: seconds before the next attempt, for a message handed over by a draining host.
        unreadable: why the message is not valid and reaches no function; None for a valid message.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    reply: str = ""
    stream: str = ""
    sequence: int = 0
    attempt: int = 1
    stored_at_ns: int = 0
    received_at_s: float = 0.0
    extended_at_s: float = 0.0
    called_before: bool = False
    size_bytes: int = 0
    delay_s: float = 0.0
    unreadable: Unreadable | None = None

    @property
    def may_be_repeated(self) -> bool:
        """Whether an earlier delivery may have been passed to the function.

        False only for a first delivery. True for every later one: redelivered, called again in
        place, parked, handed over by a draining host, redriven, or spilled because its key exceeded
        its share of the buffer. The effects of this call may have happened before.
        """
        return self.attempt > 1 or self.called_before

    @property
    def origin(self) -> str:
        """The place of first storage as one word: unique, and the same on every delivery."""
        return f"{self.stream}-{self.sequence}-{self.stored_at_ns}"


class Event(Generic[T]):
    """One decoded message, the argument of a single-event function.

    `data` is the payload in the type of the handler's annotation; `raw` is the payload's bytes.
    """

    __slots__ = ("data", "message")

    def __init__(self, message: Message, data: T) -> None:
        self.message = message
        self.data = data

    @property
    def raw(self) -> bytes:
        """The payload's bytes."""
        return self.message.data

    @property
    def subject(self) -> str:
        """The subject the message was published on."""
        return self.message.subject

    @property
    def headers(self) -> Mapping[str, str]:
        """The message's headers, one value per key."""
        return self.message.headers

    @property
    def stream(self) -> str:
        """The stream that stores the message; empty for a request to an endpoint."""
        return self.message.stream

    @property
    def sequence(self) -> int:
        """The message's sequence in its stream, the same on every delivery; 0 for a request."""
        return self.message.sequence

    @property
    def attempt(self) -> int:
        """1 on the first delivery."""
        return self.message.attempt

    @property
    def may_be_repeated(self) -> bool:
        """Whether the function may have been called before; see `Message.may_be_repeated`."""
        return self.message.may_be_repeated

    @property
    def stored_at_ns(self) -> int:
        """When the stream stored the message, nanoseconds since 1970 UTC."""
        return self.message.stored_at_ns

    @property
    def stored_at(self) -> datetime:
        """When the stream stored the message, to the microsecond, aware UTC."""
        return datetime.fromtimestamp(self.message.stored_at_ns // 1000 / 1_000_000, tz=UTC)


class Batch(Sequence[Event[T]]):
    """Several messages for one call of a batch function, in the order they were stored.

    A message that is neither rejected nor retried when the function returns counts as done and is
    acknowledged. Messages that did not fit the annotation are not in the batch: they are dead
    letters already.
    """

    __slots__ = ("_events", "steered")

    def __init__(self, events: Sequence[Event[T]]) -> None:
        self._events = events
        self.steered: dict[int, Steering] = {}

    def reject(self, event: Event[T], code: str, reason: str = "") -> None:
        """Make this one message a dead letter; the other messages are not affected."""
        self.steered[id(event)] = Reject(code, reason)

    def retry(self, event: Event[T], reason: str = "", *, delay_s: float | None = None) -> None:
        """Have this one message delivered again; the other messages are not affected."""
        self.steered[id(event)] = Retry(reason, delay_s=delay_s)

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event[T]]:
        return iter(self._events)

    @overload
    def __getitem__(self, index: int) -> Event[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event[T]]: ...
    def __getitem__(self, index: int | slice) -> Event[T] | Sequence[Event[T]]:
        return self._events[index]
