"""The headers that the runtime sets, and the escaping of an original's headers in a copy.

A copy (dead letter, parked or redriven message) must not repeat what the original's headers made
the server do: with the original's message id the server would drop the copy as a duplicate, with
`Nats-TTL` it would delete the copy, with `Nats-Rollup` it would delete other messages. Such
headers, and headers with the runtime's own prefix, are stored with the prefix `Runtime-Original-`.
The prefix is removed when the copy becomes a message again.
"""

import re
import sys
from collections.abc import Mapping

from runtime.broker.incoming import HeaderError, read_headers
from runtime.message import Message, Unreadable

STREAM = "Runtime-Stream"
SEQUENCE = "Runtime-Sequence"
SUBJECT = "Runtime-Subject"
STORED_AT = "Runtime-Stored-At"
ATTEMPT = "Runtime-Attempt"
FUNCTION = "Runtime-Function"
CODE = "Runtime-Code"
REASON = "Runtime-Reason"
ERROR_TYPE = "Runtime-Error-Type"
TRACEBACK = "Runtime-Traceback"
TIME = "Runtime-Time"
DELAY = "Runtime-Delay"
"""On a copy of a message that failed on a draining host: seconds until its next attempt."""

TAIL = "Runtime-Tail"
"""On a dead letter: the sequence of the message that stores the payload's end. On that: `end`."""

FIRST_DEAD_LETTER = "Runtime-First-Dead-Letter"
"""On a redriven message: the sequence of its first dead letter."""
FIRST_CODE = "Runtime-First-Code"
FIRST_REASON = "Runtime-First-Reason"
FIRST_TIME = "Runtime-First-Time"
REDRIVES = "Runtime-Redrives"
"""On a redriven message: how many times it was redriven."""

HEADER_BLOCK = "Runtime-Header-Block"
"""The bytes of an original's unreadable headers, escaped, one character for each byte."""

CUT = "Runtime-Headers-Cut"
"""Names of the original's headers that were too large for the copy."""

LIMIT_BYTES = 65_535
"""The largest size of a stored message's headers. Source: nats-server error 10097."""

_ORIGINAL = "Runtime-Original-"
_ODD = "Runtime-Odd-"
"""Prefix of a name in hexadecimal digits, for names that the client library refuses to send."""
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ACTING = ("nats-", "runtime-")
_DIGITS = 19
_CUT_MARK = "..."
_SHORT = {r"\\": "\\", r"\n": "\n", r"\r": "\r", r"\t": "\t"}
_ESCAPED = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def escape(value: str, limit: int | None = None) -> str:
    """Escape a header value to ASCII without line breaks, at most `limit` characters long.

    A value that was cut ends with `...`.
    """
    escaped = value.encode("unicode_escape").decode("ascii")
    if limit is None or len(escaped) <= limit:
        return escaped
    # Character by character: a cut inside an escape sequence could not be read back.
    kept, room = [], limit - len(_CUT_MARK)
    for character in value:
        piece = character.encode("unicode_escape").decode("ascii")
        room -= len(piece)
        if room < 0:
            break
        kept.append(piece)
    return "".join(kept) + _CUT_MARK


def unescape(value: str) -> str:
    """The value that `escape` was given; text that `escape` does not write stays as it is."""
    return _ESCAPED.sub(_unescaped, value) if "\\" in value else value


def shield(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a message, renamed so that none of them acts on a copy."""
    shielded: dict[str, str] = {}
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            shielded[_ODD + name.encode("utf-8", "surrogatepass").hex()] = escape(value)
            continue
        plain = value.isascii() and value.isprintable() and value == value.strip()
        if plain and not name.lower().startswith(_ACTING):
            shielded[name] = value
        else:
            shielded[_ORIGINAL + name] = escape(value)
    return shielded


def unshield(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that `shield` was given, from a copy's headers."""
    restored: dict[str, str] = {}
    for name, value in headers.items():
        if name.startswith(_ORIGINAL):
            restored[name[len(_ORIGINAL) :]] = unescape(value)
        elif name.startswith(_ODD):
            restored[_named(name[len(_ODD) :])] = unescape(value)
        elif not name.lower().startswith(_ACTING):
            restored[name] = value
    return restored


def origin_headers(message: Message) -> dict[str, str]:
    """The headers of a copy: the message's own, shielded, and those that name its origin."""
    block = message.unreadable.header_block if message.unreadable is not None else b""
    return {
        **shield(message.headers),
        **({HEADER_BLOCK: escape(block.decode("latin-1"))} if block else {}),
        STREAM: message.stream,
        SEQUENCE: str(message.sequence),
        SUBJECT: escape(message.subject),
        STORED_AT: str(message.stored_at_ns),
    }


def original(copy: Message, data: bytes | None = None) -> Message | None:
    """The message that a copy was made of; None when it names no origin, so is not a copy.

    `reply`, `attempt` and `received_at_s` are the copy's own.
    """
    headers = copy.headers
    stream, sequence = headers.get(STREAM, ""), number(headers, SEQUENCE)
    if not stream or not sequence:
        return None
    subject = unescape(headers.get(SUBJECT, ""))
    return Message(
        subject=subject,
        data=copy.data if data is None else data,
        headers=unshield(headers),
        reply=copy.reply,
        stream=stream,
        sequence=sequence,
        attempt=copy.attempt,
        stored_at_ns=number(headers, STORED_AT),
        received_at_s=copy.received_at_s,
        size_bytes=copy.size_bytes,
        delay_s=number(headers, DELAY),
        unreadable=_unreadable(headers.get(HEADER_BLOCK, "")) or unreadable_subject(subject),
    )


def unreadable_subject(subject: str) -> Unreadable | None:
    """Why the subject cannot be read; None for a subject in UTF-8."""
    if subject.isascii():
        return None
    try:
        subject.encode()
    except UnicodeEncodeError:
        return Unreadable("its subject is not UTF-8")
    return None


def _unreadable(escaped: str) -> Unreadable | None:
    if not escaped:
        return None
    block = unescape(escaped).encode("latin-1", "replace")
    try:
        read_headers(block)
    except HeaderError as failure:
        return Unreadable(str(failure), block)
    return None


def _unescaped(found: re.Match[str]) -> str:
    sequence = found[0]
    if (short := _SHORT.get(sequence)) is not None:
        return short
    code = int(sequence[2:], 16)
    return chr(code) if code <= sys.maxunicode else sequence


def _named(digits: str) -> str:
    try:
        return bytes.fromhex(digits).decode("utf-8", "surrogatepass")
    except ValueError:
        return digits


def number(headers: Mapping[str, str], name: str) -> int:
    """The header as a number from 0; 0 when the header is missing or not a number."""
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) <= _DIGITS else 0


def size_bytes(headers: Mapping[str, str]) -> int:
    """The size of the headers on the wire. Source: NATS ADR-4."""
    lines = sum(
        len(name.encode()) + len(value.encode("utf-8", "surrogatepass")) + 4
        for name, value in headers.items()
    )
    return lines + len("NATS/1.0\r\n\r\n")
