"""Reads messages of a stream once more, by a consumer of its own.

The consumer exists in memory only, needs no acknowledgement, and the server removes it when nobody
has pulled from it for `INACTIVE_S`: a killed reader leaves nothing behind. Source: NATS ADR-9
(filtered, ephemeral consumers) and ADR-17 (ordered consumer), whose rule against gaps is used here:
deliveries have consecutive sequences of the consumer, and at a gap the reader begins anew behind
the last message that it got.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from runtime.broker.ack_subject import place_of, set_origin
from runtime.broker.connection import ApiError, Broker
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.message import Message
from runtime.subjects import HOST_INBOX

INACTIVE_S = 30
PULL_MESSAGES = 256
PULL_BYTES = 4_000_000
"""The most bytes of one pull request; a larger message is pulled alone."""
PULL_S = 5.0
RECOVERY_S = 60.0
"""How long the reader tries to go on when the server or the consumer is away."""
PAUSE_S = 1.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS = 1_000_000_000
_NOT_FOUND = 404
_REMOVED_PAST = ("workqueue", "interest")


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a stream, as the user names it.

    Attributes:
        stream: the stream.
        filters: subjects, which may have wildcards; empty for all.
        first: the first sequence, or the time of storage to begin at.
        until: the last sequence, or the time of storage to end before; None for the stream's end.
    """

    stream: str
    filters: tuple[str, ...]
    first: int | datetime
    until: int | datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The messages of a span, as they were when it was looked up.

    Attributes:
        span: the span.
        count: the number of messages.
        last: the stream's last sequence that belongs to the span.
        oldest: the stream's first sequence: what was before is gone.
    """

    span: Span
    count: int
    last: int
    oldest: int


class _Gap(Exception):  # noqa: N818 - names what happened
    """Messages may have been missed: the consumer or the connection is lost."""


class History:
    """Reads a span of a stream."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._inbox = f"{HOST_INBOX}.{secrets.token_hex(11)}"
        self._arrived: asyncio.Queue[Message] = asyncio.Queue()
        self._reached = 0
        self._number = 0

    async def find(self, span: Span) -> Found:
        """Count the messages of a span.

        Raises:
            ConfigError: the stream does not exist, removes what is done, or has nothing there.
            Unavailable: JetStream does not answer.
        """
        state = await self._state(span.stream)
        oldest, last = int(state["first_seq"]), int(state["last_seq"])
        _check(span, last)
        count = await self._pending(span, span.first)
        if isinstance(span.until, int):
            last = min(last, span.until)
        if span.until is not None:
            behind = span.until + 1 if isinstance(span.until, int) else span.until
            count -= await self._pending(span, behind)
        return Found(span, max(0, count), last, oldest)

    async def read(self, found: Found) -> AsyncGenerator[Message, None]:
        """Iterate over the messages of a span, in their order.

        Raises:
            ConfigError: the stream was deleted meanwhile.
            Unavailable: the server was away for longer than `RECOVERY_S`.
        """
        if not found.count:
            return
        subscription = await self._broker.subscribe(f"{self._inbox}.*", self._arrived.put_nowait)
        begin: int | datetime = found.span.first
        patience_s = self._now() + RECOVERY_S
        try:
            while True:
                try:
                    async for message in self._read_from(found, begin):
                        begin, patience_s = message.sequence + 1, self._now() + RECOVERY_S
                        yield message
                except (_Gap, Unavailable, ApiError) as failure:
                    await self._wait_or_raise(found.span.stream, failure, patience_s)
                else:
                    return
        finally:
            await subscription.unsubscribe()

    async def _read_from(
        self, found: Found, begin: int | datetime
    ) -> AsyncGenerator[Message, None]:
        stream, until = found.span.stream, found.span.until
        end_ns = _ns(until) if isinstance(until, datetime) else None
        self._reached = 0
        name, pending = await self._create(found.span, begin)
        try:
            while pending:
                messages = await self._pull(stream, name)
                if not messages:
                    pending = await self._pending_of(stream, name)
                for message in messages:
                    pending = place_of(message.reply)[1]
                    set_origin(message)
                    is_behind = message.sequence > found.last or (
                        end_ns is not None and message.stored_at_ns >= end_ns
                    )
                    if is_behind:
                        return
                    yield message
        finally:
            await self._delete(stream, name)

    async def _pull(self, stream: str, name: str, *, alone: bool = False) -> list[Message]:
        """The messages of one pull request; none when none arrived in time.

        Raises:
            _Gap: a message may have been lost.
        """
        self._number += 1
        reply = f"{self._inbox}.{self._number}"
        left = 1 if alone else PULL_MESSAGES
        body: dict[str, int] = {"batch": left, "expires": int(PULL_S * _NS)}
        if not alone:
            body["max_bytes"] = PULL_BYTES
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
        await self._broker.send(subject, json.dumps(body).encode(), reply)
        messages: list[Message] = []
        while left:
            message = await self._next()
            if message.reply:
                self._check_place(message)
                messages.append(message)
                left -= 1
                if not place_of(message.reply)[1]:
                    break
            elif message.subject == reply:
                if not messages and _is_too_large(message):
                    return await self._pull(stream, name, alone=True)
                _check_end(message)
                break
        return messages

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout(PULL_S + 2):
                return await self._arrived.get()
        except TimeoutError:
            raise _Gap("the server does not answer a pull request") from None

    def _check_place(self, message: Message) -> None:
        place, _ = place_of(message.reply)
        if place != self._reached + 1:
            raise _Gap("a message was lost on its way")
        self._reached = place

    async def _create(self, span: Span, begin: int | datetime) -> tuple[str, int]:
        """Create the consumer; return its name and how many messages it has."""
        name = f"replay-{secrets.token_hex(6)}"
        config: dict[str, Any] = {
            "name": name,
            "description": "reads the past once more; removed when nobody pulls",
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": INACTIVE_S * _NS,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if len(span.filters) == 1:
            config["filter_subject"] = span.filters[0]
        elif span.filters:
            config["filter_subjects"] = list(span.filters)
        if isinstance(begin, int):
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, begin)}
        else:
            stamp = begin.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            config |= {"deliver_policy": "by_start_time", "opt_start_time": stamp}
        payload = {"stream_name": span.stream, "config": config}
        created = await self._broker.api(f"CONSUMER.CREATE.{span.stream}.{name}", payload)
        return name, int(created["num_pending"])

    async def _delete(self, stream: str, name: str) -> None:
        try:
            await self._broker.api(f"CONSUMER.DELETE.{stream}.{name}", timeout_s=1.0)
        except (ApiError, Unavailable):
            return  # The server removes it by itself.

    async def _pending(self, span: Span, begin: int | datetime) -> int:
        name, pending = await self._create(span, begin)
        await self._delete(span.stream, name)
        return pending

    async def _pending_of(self, stream: str, name: str) -> int:
        info = await self._broker.api(f"CONSUMER.INFO.{stream}.{name}")
        return int(info["num_pending"])

    async def _state(self, stream: str) -> dict[str, Any]:
        try:
            info = await self._broker.api(f"STREAM.INFO.{stream}")
        except ApiError as error:
            if error.code == _NOT_FOUND:
                raise _gone(stream) from error
            raise
        if info["config"].get("retention") in _REMOVED_PAST:
            wrong = "it removes a message as soon as it is done, so it has no past"
            remedy = "messages that failed are dead letters: `runtime dlq redrive`"
            raise ConfigError([Problem(f"stream {stream}", "", wrong, remedy)])
        state: dict[str, Any] = info["state"]
        return state

    async def _wait_or_raise(self, stream: str, failure: Exception, patience_s: float) -> None:
        """Wait before the next attempt; raise when that is hopeless."""
        if isinstance(failure, ApiError) and failure.code == _NOT_FOUND:
            await self._state(stream)
        if self._now() > patience_s:
            if isinstance(failure, Unavailable):
                raise failure
            raise Unavailable(f"stream {stream}", str(failure)) from failure
        await asyncio.sleep(PAUSE_S)
        while not self._arrived.empty():
            self._arrived.get_nowait()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _check(span: Span, last: int) -> None:
    """Refuse a span with nothing in it.

    Raises:
        ConfigError: says where the stream ends.
    """
    first, until = span.first, span.until
    wrong, remedy = "", ""
    if isinstance(first, int) and not last:
        wrong, remedy = "it has had no message yet", "publish one first"
    elif isinstance(first, int) and first > last:
        wrong, remedy = f"it ends at sequence {last:,}", "begin earlier"
    elif isinstance(first, datetime) and first > datetime.now(UTC):
        wrong, remedy = f"{first.isoformat()} is in the future", "begin earlier"
    elif type(first) is type(until) and until < first:  # type: ignore[operator]
        wrong, remedy = "the end is before the beginning", "exchange --from and --until"
    if wrong:
        raise ConfigError([Problem(f"stream {span.stream}", "", wrong, remedy)])


def _gone(stream: str) -> ConfigError:
    wrong = "it does not exist on this server"
    remedy = "`runtime apply` makes the streams of the manifests"
    return ConfigError([Problem(f"stream {stream}", "", wrong, remedy)])


def _is_too_large(status: Message) -> bool:
    return "message size" in status.headers.get("Description", "").lower()


def _check_end(status: Message) -> None:
    """Accept the normal end of a pull request.

    Raises:
        _Gap: the request ended for another reason.
    """
    code, text = status.headers.get("Status", ""), status.headers.get("Description", "")
    lowered = text.lower()
    if code in {"404", "408"} or "batch completed" in lowered or _is_too_large(status):
        return
    raise _Gap(f"{code} {text}".strip())
