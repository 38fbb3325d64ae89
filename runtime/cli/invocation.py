"""The event that `runtime invoke` calls a function with."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from runtime.broker import stored
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.errors import ConfigError, Problem
from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.message import DUE_AT, Message

NO_STREAM = "INVOKED"
"""In place of a stream, for a message that the user made: no stream has it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for.

    Attributes:
        payloads: of the messages that the user made; one empty payload when none was given.
        subject: of these messages; None for one that the function consumes.
        headers: of these messages.
        stored: stream and sequence of a stored message.
        letter: sequence of a dead letter.
    """

    payloads: tuple[bytes, ...] = (b"",)
    subject: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    stored: tuple[str, int] | None = None
    letter: int | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the server has the message."""
        return self.stored is not None or self.letter is not None

    @property
    def is_plain(self) -> bool:
        """Whether the user gave neither a payload nor a stored message."""
        return self.payloads == (b"",) and not self.is_stored


async def read_stored(broker: Broker, wanted: Wanted) -> Message:
    """The stored message that the user named, as at its first delivery.

    Raises:
        ConfigError: there is none.
        Unavailable: JetStream does not answer.
    """
    if wanted.letter is not None:
        letter = await DeadLetters(broker).get(wanted.letter)
        message = letter.message if letter else None
        where, remedy = f"dead letter {wanted.letter}", "`runtime dlq ls` lists them"
    else:
        stream, sequence = wanted.stored or ("", 0)
        message = await stored.fetch(broker, stream, sequence)
        where, remedy = f"message {stream}:{sequence}", "`nats stream info` shows what it has"
    if message is None:
        raise ConfigError([Problem(where, "", "it does not exist on this server", remedy)])
    message.attempt = 1
    return message


def make_messages(wanted: Wanted, function: Function, manifest: Manifest) -> Sequence[Message]:
    """The messages that the user made, as the function would get them.

    Raises:
        ConfigError: the function takes no event.
    """
    spec = function.spec
    if function.shape == "service":
        wrong, remedy = "a service takes no event", "serve it: `runtime serve`"
        raise ConfigError([Problem(f"function {function.name}", "", wrong, remedy)])
    if len(wanted.payloads) > 1 and function.shape != "batch":
        wrong, remedy = "it takes one event in a call", "give one --data"
        raise ConfigError([Problem(f"function {function.name}", "", wrong, remedy)])
    subject = wanted.subject or _subject_of(function, manifest)
    headers = dict(wanted.headers)
    if spec.endpoint:
        return [Message(subject, wanted.payloads[0], headers)]
    if function.shape == "schedule":
        headers.setdefault(DUE_AT, datetime.now(UTC).isoformat())
    first = Message(subject, b"", headers, stream=_stream_of(function), stored_at_ns=time.time_ns())
    return [
        replace(first, data=payload, sequence=number)
        for number, payload in enumerate(wanted.payloads, start=1)
    ]


def make_remote_message(wanted: Wanted, subject: str) -> Message:
    """A message that the user made, with an identity that no other message has."""
    headers = dict(wanted.headers)
    headers.setdefault(DUE_AT, datetime.now(UTC).isoformat())
    now_ns = time.time_ns()
    return Message(
        wanted.subject or subject,
        wanted.payloads[0],
        headers,
        stream=NO_STREAM,
        sequence=now_ns // 1000,
        stored_at_ns=now_ns,
    )


def _stream_of(function: Function) -> str:
    return function.spec.consumer.stream if function.spec.consumer else NO_STREAM


def _subject_of(function: Function, manifest: Manifest) -> str:
    """The first subject that the function consumes, with words in place of wildcards."""
    spec = function.spec
    if spec.endpoint:
        return spec.endpoint.subject
    if spec.consumer is None:
        return f"schedules.tick.{function.name}"
    stream = manifest.streams.get(spec.consumer.stream)
    subjects = spec.consumer.filter_subjects or (stream.subjects if stream else ("any",))
    return ".".join("any" if part in ("*", ">") else part for part in subjects[0].split("."))
