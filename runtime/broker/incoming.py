"""Parser for the server's commands; an invalid message spoils no other message.

The client library's own parser takes white space that NATS allows inside a subject for the end of
the subject. It also stops reading the connection at a text that is not UTF-8 and at an invalid
header block. Source: nats-py 2.16 `protocol/parser.py`, `aio/client.py`.
"""

import json
from typing import Any, Protocol

import nats.errors

LONGEST_LINE_BYTES = 1024 * 1024
"""A longer line is invalid: INFO of a large cluster has some ten thousand bytes."""
_HEADER_LINE = "NATS/1.0"
_STATUS_DIGITS = 3
_PARTS_WITH_REPLY = 4


class HeaderError(ValueError):
    """A header block is invalid; the text says why, for a person."""


class Receiver(Protocol):
    """Receives the parsed commands."""

    @property
    def is_connected(self) -> bool:
        """Whether the connection that brought the bytes is still open."""

    def deliver(self, sid: int, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """Take a message for subscription `sid`; `block` is its headers, from `NATS/1.0`."""

    async def _process_err(self, err_msg: str) -> None: ...
    async def _process_ping(self) -> None: ...
    async def _process_pong(self) -> None: ...
    async def _process_info(self, info: dict[str, Any]) -> None: ...


class Parser:
    """Parses the bytes of one connection incrementally, and passes each whole command on.

    Source: NATS client protocol; the server writes one space between the parts of a line, and no
    part holds a space, a tab or a line break.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.reset()

    def reset(self) -> None:
        """Forget the bytes of the connection before."""
        self._pieces: list[bytes] = []
        self._here = 0
        self._needed = 0

    async def parse(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            ProtocolError: the bytes are not the NATS protocol.
        """
        self._here += len(data)
        if self._pieces:
            self._pieces.append(data)
            if self._here < self._needed:
                return  # The pieces of a large message are joined once.
            data = b"".join(self._pieces)
        try:
            end = await self._take_apart(data)
        except (ValueError, IndexError) as failure:
            raise nats.errors.ProtocolError from failure
        rest = data[end:]
        self._pieces = [rest] if rest else []
        self._here = len(rest)
        if self._here > LONGEST_LINE_BYTES and not self._needed:
            raise nats.errors.ProtocolError

    async def _take_apart(self, data: bytes) -> int:
        """Pass on all whole commands; return where the rest begins."""
        self._needed = 0
        position, size = 0, len(data)
        deliver = self._receiver.deliver
        while (end := data.find(b"\r\n", position)) >= 0:
            operation = data[position : position + 4]
            if operation == b"MSG ":
                subject, sid, reply, length = _message_line(data[position + 4 : end])
                block_end = begin = end + 2
            elif operation == b"HMSG":
                subject, sid, reply, block, length = _headed_line(data[position + 5 : end])
                begin = end + 2
                block_end = begin + block
            else:
                await self._obey(data[position:end])
                if not self._receiver.is_connected:
                    return size  # The connection was replaced: drop its other bytes.
                position = end + 2
                continue
            stop = begin + length
            if stop + 2 > size:
                self._needed = stop + 2 - position
                return position
            position = stop + 2
            deliver(sid, subject, reply, data[block_end:stop], data[begin:block_end])
        return position

    async def _obey(self, line: bytes) -> None:
        receiver = self._receiver
        operation, _, argument = line.partition(b" ")
        if operation == b"PING":
            await receiver._process_ping()  # noqa: SLF001 - the library's names
        elif operation == b"PONG":
            await receiver._process_pong()  # noqa: SLF001
        elif operation == b"-ERR":
            text = argument.decode("utf-8", "replace").strip().strip("'")
            await receiver._process_err(text.lower())  # noqa: SLF001
        elif operation == b"INFO":
            await receiver._process_info(_read_info(argument))  # noqa: SLF001
        elif operation != b"+OK":
            raise nats.errors.ProtocolError


def read_headers(block: bytes) -> dict[str, str]:
    """The headers of a message, one value per name: the last value of a repeated name.

    A status line's number and text become `Status` and `Description`. Bytes that are not UTF-8
    become surrogates, as in `os.fsdecode`, so that they are sent on unchanged. Source: NATS ADR-4.

    Raises:
        HeaderError: the block is not valid.
    """
    first, *lines = block.decode("utf-8", "surrogateescape").split("\r\n")
    if not first.startswith(_HEADER_LINE):
        raise HeaderError("its headers do not begin with NATS/1.0")
    headers: dict[str, str] = {}
    if status := first[len(_HEADER_LINE) :]:
        if status[0] != " ":
            raise HeaderError("its headers' first line is not NATS/1.0 alone")
        number, text = status[1 : _STATUS_DIGITS + 1], status[_STATUS_DIGITS + 1 :].strip()
        if number.isascii() and number.isdigit():
            headers["Status"] = number
        if text:
            headers["Description"] = text
    for line in lines:
        if not line:
            continue
        name, colon, value = line.partition(":")
        name = name.strip()
        if not colon or not name:
            raise HeaderError("a line of its headers has no name")
        headers[name] = value.strip(" \t")
    return headers


def _message_line(line: bytes) -> tuple[bytes, int, bytes, int]:
    """Parse `MSG <subject> <sid> [reply-to] <#bytes>`, without the first word."""
    parts = line.split(b" ")
    reply = parts[2] if len(parts) == _PARTS_WITH_REPLY else b""
    return parts[0], int(parts[1]), reply, int(parts[-1])


def _headed_line(line: bytes) -> tuple[bytes, int, bytes, int, int]:
    """Parse `HMSG <subject> <sid> [reply-to] <#header bytes> <#total bytes>`, likewise."""
    parts = line.split(b" ")
    reply = parts[2] if len(parts) == _PARTS_WITH_REPLY + 1 else b""
    return parts[0], int(parts[1]), reply, int(parts[-2]), int(parts[-1])


def _read_info(text: bytes) -> dict[str, Any]:
    info = json.loads(text)
    if not isinstance(info, dict):
        raise ValueError("INFO is not an object")  # noqa: TRY004 - as for text that is not JSON
    return info
