"""Takes the place of NATS in a local call: records what a function sends, and answers requests."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.broker.outgoing import publish_command
from runtime.context import BrokerPort, PubAck, Publication, Reply
from runtime.errors import NoAnswer
from runtime.loader.payload import encode
from runtime.message import Message
from runtime.subjects import matches

MAX_PAYLOAD_BYTES = 1024 * 1024
"""The server's own default for the size of a message."""
RECORDED_STREAM = "RECORDED"
"""The stream that a recorded publish is confirmed for, as there is none."""

Answers = Mapping[str, Any]
"""What requests are answered with, by subject pattern: bytes, a `Reply`, a value that becomes JSON,
an exception to raise, or a function from the request's payload to one of these."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that a function sent.

    Attributes:
        kind: `publish`, `publish_core` or `request`.
        subject: the subject.
        data: the payload.
        headers: the headers that the function gave.
        msg_id: the message id; None for `publish_core` and `request`.
        duplicate: whether a publish with this id came before, so that nothing new was stored.
        function: the function that sent it.
    """

    kind: str
    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    msg_id: str | None = None
    duplicate: bool = False
    function: str = ""

    def json(self) -> Any:  # noqa: ANN401 - whatever JSON holds
        """The payload, decoded from JSON.

        Raises:
            ValueError: it is not JSON.
        """
        return json.loads(self.data)

    def __str__(self) -> str:
        return f"{self.kind} {self.subject} ({len(self.data)} bytes)"


class RecordedEffects:
    """Implements `runtime.context.BrokerPort` without a connection.

    Args:
        answers: see `Answers`; a request that no pattern matches raises `NoAnswer`.
        live: if given, everything is also sent through this broker, and its answers are returned.
        max_payload_bytes: the largest message that is accepted.
        sent: the list to record to, which several functions may share; a new one unless given.
        function: the function whose effects these are.

    Attributes:
        sent: the messages, in the order in which they were sent.
    """

    def __init__(
        self,
        answers: Answers | None = None,
        *,
        live: BrokerPort | None = None,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        sent: list[Sent] | None = None,
        function: str = "",
    ) -> None:
        self.sent: list[Sent] = [] if sent is None else sent
        self._function = function
        self._answers = answers or {}
        self._live = live
        self._max_payload_bytes = max_payload_bytes
        self._ids: dict[str, int] = {}

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """Record a publish; confirm it.

        Raises:
            Unsendable: a server would not accept the message.
            PublishFailed: when live, JetStream did not confirm.
        """
        sent = {**(headers or {}), **({"Nats-Msg-Id": msg_id} if msg_id is not None else {})}
        self._check(subject, data, sent)
        if self._live is not None:
            ack = await self._live.publish(subject, data, msg_id=msg_id, headers=headers)
        else:
            ack = self._confirm(msg_id)
        self._add("publish", subject, data, headers, msg_id, duplicate=ack.duplicate)
        return ack

    async def publish_many(self, publications: Sequence[Publication]) -> list[PubAck]:
        """Record and confirm several publishes, as `publish`."""
        return [
            await self.publish(each.subject, each.data, msg_id=each.msg_id, headers=each.headers)
            for each in publications
        ]

    async def publish_core(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Record a publish without confirmation.

        Raises:
            Unsendable: a server would not accept the message.
        """
        self._check(subject, data, headers)
        if self._live is not None:
            await self._live.publish_core(subject, data, headers=headers)
        self._add("publish_core", subject, data, headers)

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Record a request and answer it.

        Raises:
            NoAnswer: no answer is given for the subject; when live, nobody answered.
            Unsendable: a server would not accept the request.
            Exception: the exception that is given as the answer.
        """
        self._check(subject, data, headers)
        self._add("request", subject, data, headers)
        for pattern, answer in self._answers.items():
            if matches(pattern, subject):
                return _reply(answer, data)
        if self._live is not None:
            return await self._live.request(subject, data, timeout_s=timeout_s, headers=headers)
        raise NoAnswer(subject, "no responders")

    async def request_many(self, subject: str, data: bytes, *, wait_s: float) -> list[Reply]:
        """Record a request to all; return the answers that are given for the subject."""
        self._check(subject, data, None)
        self._add("request", subject, data, None)
        found = [answer for pattern, answer in self._answers.items() if matches(pattern, subject)]
        if not found and self._live is not None:
            return await self._live.request_many(subject, data, wait_s=wait_s)
        return [_reply(answer, data) for answer in found]

    async def pull(
        self, stream: str, durable: str, *, messages: int, size_bytes: int, wait_s: float
    ) -> list[Message]:
        """Record a pull; return what is given for its subject, a list of payloads or messages.

        The subject is `$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}`; nothing is waited for.
        """
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._add("request", subject, b"", None)
        for pattern, answer in self._answers.items():
            if matches(pattern, subject):
                if isinstance(answer, Exception):
                    raise answer
                return [_pulled(each, stream, place) for place, each in enumerate(answer, start=1)]
        if self._live is None:
            return []
        return await self._live.pull(
            stream, durable, messages=messages, size_bytes=size_bytes, wait_s=wait_s
        )

    async def in_progress(self, message: Message) -> None:
        """Do nothing unless live: a local call has no ack wait."""
        if self._live is not None:
            await self._live.in_progress(message)

    def _check(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> None:
        publish_command(subject, "", headers, data, self._max_payload_bytes)

    def _confirm(self, msg_id: str | None) -> PubAck:
        number = len([each for each in self.sent if each.kind == "publish"]) + 1
        first = number if msg_id is None else self._ids.setdefault(msg_id, number)
        return PubAck(RECORDED_STREAM, first, first != number)

    def _add(
        self,
        kind: str,
        subject: str,
        data: bytes,
        headers: Mapping[str, str] | None,
        msg_id: str | None = None,
        *,
        duplicate: bool = False,
    ) -> None:
        sent = dict(headers or {})
        self.sent.append(Sent(kind, subject, bytes(data), sent, msg_id, duplicate, self._function))


def _pulled(given: Any, stream: str, sequence: int) -> Message:  # noqa: ANN401 - as `Answers`
    if isinstance(given, Message):
        return given
    reply = f"$JS.ACK.{stream}.local.1.{sequence}.{sequence}.0.0"
    return Message("", encode(given), reply=reply, stream=stream, sequence=sequence)


def _reply(answer: Any, data: bytes) -> Reply:  # noqa: ANN401 - the forms of `Answers`
    if isinstance(answer, Callable) and not isinstance(answer, type):  # type: ignore[arg-type]
        answer = answer(data)
    if isinstance(answer, Exception):
        raise answer
    return answer if isinstance(answer, Reply) else Reply(encode(answer), {})
