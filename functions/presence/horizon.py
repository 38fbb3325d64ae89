"""Up to when the messages of devices are known: as far as ingest has come."""

import base64
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson

from functions.presence.sessions import read_time
from runtime import Context, Unavailable

_TIMEOUT_S = 5.0
_NOT_FOUND = 404
# Messages that wait for another attempt leave their stream, and keep the time of their storage.
_MAILBOX = "MAILBOX"
_STORED_AT = re.compile(rb"\r\nRuntime-Stored-At: (\d{1,19})\r\n")
_NS_PER_US = 1000
_MOST = 100
_SHOWN = 200
# Ingest tries a message for so long, and each attempt moves it to the end of the mailbox.
_ALL_ATTEMPTS = timedelta(minutes=15)


class _Reader(NamedTuple):
    """A function that writes telemetry, and the consumer that it reads."""

    stream: str
    durable: str
    function: str


_READERS = (
    _Reader("TELEMETRY", "ingest-workers", "ingest"),
    _Reader("UNMAPPED", "ingest-unmapped", "ingest_unmapped"),
)


async def find_horizon(ctx: Context[Any], now: datetime) -> datetime:
    """When the oldest message was stored that ingest has not processed; `now` when there is none.

    Silence after that time proves nothing: after an outage a backlog holds the messages of devices
    that only seem silent. A part of it may wait in the mailbox of ingest.

    Raises:
        Unavailable: NATS is not connected, or JetStream cannot tell.
    """
    horizon = now
    # The streams first: a message that moves to the mailbox meanwhile is seen twice, not never.
    for reader in _READERS:
        horizon = min(horizon, await _oldest_unread(ctx, reader) or horizon)
    mailbox = await _ask(ctx, f"STREAM.INFO.{_MAILBOX}")
    if mailbox is not None and mailbox["state"]["messages"]:
        for reader in _READERS:
            horizon = min(horizon, await _oldest_waiting(ctx, reader.function) or horizon)
    return horizon


async def _oldest_unread(ctx: Context[Any], reader: _Reader) -> datetime | None:
    consumer = await _ask(ctx, f"CONSUMER.INFO.{reader.stream}.{reader.durable}")
    if consumer is None:
        return None
    if not consumer.get("num_pending") and not consumer.get("num_ack_pending"):
        return None
    after = consumer["ack_floor"]["stream_seq"] + 1
    # The next one that is stored: older ones may have been removed.
    found = await _ask(ctx, f"STREAM.MSG.GET.{reader.stream}", {"seq": after, "next_by_subj": ">"})
    return None if found is None else read_time(found["message"]["time"])


async def _oldest_waiting(ctx: Context[Any], function: str) -> datetime | None:
    """When the oldest message was stored of those in the mailbox of a function."""
    oldest: datetime | None = None
    count = 0
    # In the order in which a message moves.
    for subject in (f"mailbox.parked.{function}.>", f"mailbox.ready.{function}"):
        async for stored_at in _waiting(ctx, subject):
            oldest = min(oldest or stored_at, stored_at)
            count += 1
            if count == _MOST:
                return oldest - _ALL_ATTEMPTS
    return oldest


async def _waiting(ctx: Context[Any], subject: str) -> AsyncIterator[datetime]:
    sequence = 1
    while True:
        wanted = {"seq": sequence, "next_by_subj": subject}
        found = await _ask(ctx, f"STREAM.MSG.GET.{_MAILBOX}", wanted)
        if found is None:
            return
        message = found["message"]
        yield _stored_at(message)
        sequence = message["seq"] + 1


def _stored_at(message: dict[str, Any]) -> datetime:
    """When the message was stored of which this one in the mailbox is a copy."""
    stated = _STORED_AT.search(base64.b64decode(message.get("hdrs") or ""))
    if stated is None:
        return read_time(message["time"])
    return datetime.fromtimestamp(int(stated[1]) // _NS_PER_US / 1_000_000, UTC)


async def _ask(
    ctx: Context[Any], subject: str, content: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    data = b"" if content is None else orjson.dumps(content)
    reply = await ctx.request(f"$JS.API.{subject}", data, timeout_s=_TIMEOUT_S)
    return read_answer(reply.data)


def read_answer(data: bytes) -> dict[str, Any] | None:
    """JetStream's answer; None when there is no such stream, consumer or message.

    Raises:
        Unavailable: any other error, which says nothing about messages: a cluster without a leader,
            for one.
    """
    answer: dict[str, Any] = orjson.loads(data)
    error = answer.get("error")
    if error is None:
        return answer
    if error.get("code") == _NOT_FOUND:
        return None
    raise Unavailable("JetStream", str(error.get("description", "an error"))[:_SHOWN])


__all__ = ["find_horizon", "read_answer"]
