"""Reads and deletes stored messages: one by its sequence, many by their subject."""

import base64
import calendar
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from runtime.broker.connection import ApiError, Broker
from runtime.broker.incoming import HeaderError, read_headers
from runtime.message import NO_HEADERS, Message, Unreadable

_TIMESTAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d))"
)
_NOT_FOUND = 404


async def fetch(broker: Broker, stream: str, sequence: int) -> Message | None:
    """The message with this sequence; None when the stream, or the message, is gone.

    Raises:
        Unavailable: JetStream does not answer.
    """
    return await _get(broker, stream, {"seq": sequence})


async def last(broker: Broker, stream: str, subject: str) -> Message | None:
    """The last message on `subject`; None when the stream, or every message on it, is gone.

    Raises:
        Unavailable: JetStream does not answer.
    """
    return await _get(broker, stream, {"last_by_subj": subject})


async def scan(
    broker: Broker, stream: str, subject: str, *, first: int = 1, last: int | None = None
) -> AsyncIterator[Message]:
    """Iterate over the messages on `subject`, which may have wildcards, oldest first.

    Ends with the last message that the stream had when the scan began, or at `last`, so the scan
    ends although new messages arrive.

    Raises:
        Unavailable: JetStream does not answer.
    """
    if last is None:
        last = await last_sequence(broker, stream)
    while first <= last:
        message = await _get(broker, stream, {"seq": first, "next_by_subj": subject})
        if message is None or message.sequence > last:
            return
        yield message
        first = message.sequence + 1


async def last_sequence(broker: Broker, stream: str) -> int:
    """The sequence of the last message ever stored; 0 for an empty or missing stream."""
    try:
        info = await broker.api(f"STREAM.INFO.{stream}")
    except ApiError as error:
        if error.code == _NOT_FOUND:
            return 0
        raise
    return int(info["state"]["last_seq"])


async def delete(broker: Broker, stream: str, sequence: int) -> bool:
    """Delete one message; return False when it was gone already.

    Raises:
        ApiError: the stream forbids it.
        Unavailable: JetStream does not answer.
    """
    payload = {"seq": sequence, "no_erase": True}
    try:
        await broker.api(f"STREAM.MSG.DELETE.{stream}", payload)
    except ApiError:
        # The error for a message that is gone differs between server versions.
        if await fetch(broker, stream, sequence) is None:
            return False
        raise
    return True


def parse_time_ns(text: str) -> int:
    """Nanoseconds since 1970 of a server's RFC 3339 timestamp, which may have nine decimals.

    Raises:
        ValueError: the text is not such a timestamp.
    """
    if not (found := _TIMESTAMP.fullmatch(text)):
        raise ValueError(f"{text!r} is not a timestamp")
    seconds = calendar.timegm(tuple(int(part) for part in found.groups()[:6]))
    if found[8]:
        offset_s = int(found[9]) * 3600 + int(found[10]) * 60
        seconds -= offset_s if found[8] == "+" else -offset_s
    return seconds * 1_000_000_000 + int(f"{found[7] or '0':0<9}")


async def _get(broker: Broker, stream: str, payload: Mapping[str, Any]) -> Message | None:
    try:
        answer = await broker.api(f"STREAM.MSG.GET.{stream}", payload)
    except ApiError as error:
        if error.code == _NOT_FOUND:
            return None
        raise
    found = answer["message"]
    block = base64.b64decode(found.get("hdrs") or "")
    headers, unreadable = NO_HEADERS, None
    try:
        headers = read_headers(block) if block else NO_HEADERS
    except HeaderError as failure:
        unreadable = Unreadable(str(failure), block)
    return Message(
        subject=found["subject"],
        data=base64.b64decode(found.get("data", "")),
        headers=headers,
        unreadable=unreadable,
        stream=stream,
        sequence=found["seq"],
        stored_at_ns=parse_time_ns(found["time"]),
    )
