"""Encodes commands to the server; the one place where names and sizes are checked.

Every message that is sent passes through this module. A server closes the connection of a client
whose message is larger than `max_payload` (headers included) or whose command line is longer than
`max_control_line`. A line break in a subject would let the author of the subject send commands.
Source: nats-server `server/parser.go` and `server/client.go`.
"""

import re
from collections.abc import Mapping, Sequence

from runtime.errors import TooLarge, Unsendable

MAX_LINE_BYTES = 4096
"""The longest command line. A server can be configured for another length and does not announce it;
this is the default. Source: nats-server `server/const.go`, MAX_CONTROL_LINE_SIZE."""

_SHORT_BYTES = 1024
"""A whole command below this size is not measured: every server accepts this length."""
_HEADER_LINE = "NATS/1.0\r\n"
_PLAIN = re.compile(r"(?:[A-Za-z0-9_$-]+\.)*[A-Za-z0-9_$-]+")
_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LINE_BREAKS = str.maketrans({"\r": " ", "\n": " "})
_SETTLEMENT_WORDS = 4


def publish_command(
    subject: str,
    reply: str,
    headers: Mapping[str, str] | None,
    payload: bytes,
    max_payload_bytes: int,
) -> bytes:
    """Encode the command that publishes a message. Source: NATS ADR-4 for the headers.

    Text may hold bytes that are not UTF-8, in the form of `surrogateescape`: they are sent
    unchanged.

    Raises:
        TooLarge: payload and headers together are larger than the server accepts.
        Unsendable: subject, reply or a header is not valid in the protocol.
    """
    names = _checked(subject, subject)
    if reply:
        names += b" " + _checked(reply, subject, "the reply subject")
    if headers is None:
        block = b""
        line = b"PUB %b %d\r\n" % (names, len(payload))
    else:
        block = _header_block(headers, subject)
        line = b"HPUB %b %d %d\r\n" % (names, len(block), len(block) + len(payload))
    if len(line) > MAX_LINE_BYTES:
        raise Unsendable(subject, f"subject and reply make a line of {len(line)} bytes")
    size_bytes = len(block) + len(payload)
    if size_bytes > max_payload_bytes:
        raise TooLarge(subject, size_bytes, max_payload_bytes)
    return b"%b%b%b\r\n" % (line, block, payload)


def settlement_commands(
    messages: Sequence[tuple[str, bytes]], max_payload_bytes: int
) -> tuple[bytes, list[Unsendable]]:
    """As `publish_command` for many acknowledgements, at a third of its cost.

    The subjects come from the server and are almost always valid. They are checked one by one only
    when the commands together have an unexpected number of words, or one command is long.

    Args:
        messages: subject and payload of each message; the subject may be any text.
        max_payload_bytes: the server's limit.

    Returns:
        The commands, and the messages that were refused, each with its reason.
    """
    try:
        commands = [
            b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)
            for subject, payload in messages
        ]
    except UnicodeEncodeError:
        return _one_by_one(messages, max_payload_bytes)
    together = b"".join(commands)
    is_plain = len(together.split()) == _SETTLEMENT_WORDS * len(commands)
    if is_plain and max(map(len, commands), default=0) < _SHORT_BYTES:
        return together, []
    return _one_by_one(messages, max_payload_bytes)


def check_pattern(subject: str, queue: str = "") -> None:
    """Refuse a subject or queue group that cannot be subscribed to; wildcards are allowed.

    Raises:
        Unsendable: it has white space, a control character or an empty part, or is too long.
    """
    tokens = subject.split(".")
    if _UNSAFE.search(subject) or "" in tokens or ">" in tokens[:-1]:
        raise Unsendable(subject, "not a subject to subscribe to")
    if _UNSAFE.search(queue):
        raise Unsendable(subject, "its queue group has white space or a control character")
    if len(_bytes(subject, subject)) + len(_bytes(queue, subject)) > MAX_LINE_BYTES // 2:
        raise Unsendable(subject, "the subject is too long")


def _one_by_one(
    messages: Sequence[tuple[str, bytes]], max_payload_bytes: int
) -> tuple[bytes, list[Unsendable]]:
    commands, refused = [], []
    for subject, payload in messages:
        try:
            commands.append(publish_command(subject, "", None, payload, max_payload_bytes))
        except Unsendable as failure:
            refused.append(failure)
    return b"".join(commands), refused


def _checked(name: str, subject: str, what: str = "it") -> bytes:
    """The name's bytes, if the name is a subject without wildcards.

    Raises:
        Unsendable: the name is not such a subject.
    """
    if _PLAIN.fullmatch(name):
        return name.encode()
    tokens = name.split(".")
    if _UNSAFE.search(name) or "" in tokens or "*" in tokens or ">" in tokens:
        raise Unsendable(subject, f"{what} is not a subject to publish to")
    return _bytes(name, subject)


def _header_block(headers: Mapping[str, str], subject: str) -> bytes:
    lines = [_HEADER_LINE]
    for name, value in headers.items():
        if not isinstance(value, str) or not _HEADER_NAME.fullmatch(name):
            raise Unsendable(subject, "a header's name or value is not valid in NATS")
        # To look whether there is a line break costs a fifth of replacing it.
        text = value if value.isprintable() else value.translate(_LINE_BREAKS)
        lines.append(f"{name}: {text.strip()}\r\n")
    lines.append("\r\n")
    return _bytes("".join(lines), subject)


def _bytes(text: str, subject: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as failure:
        raise Unsendable(subject, "a text in it holds half a surrogate pair") from failure
