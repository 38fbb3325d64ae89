"""What the server sends, taken apart. Whatever bytes a message holds, it costs nobody but itself.

The client library's own parser took white space that NATS allows inside a subject for the end of
that subject, and ended the reading of the whole connection at a text that is no UTF-8 or at a block
of headers that is none. Source: nats-py 2.16 `protocol/parser.py`, `aio/client.py`.
"""

import json
from typing import Any, Protocol

import nats.errors

LONGEST_LINE_BYTES = 1024 * 1024
"""A line that is longer is none: INFO of a large cluster has some ten thousand bytes."""
_HEADER_LINE = "NATS/1.0"
_STATUS_DIGITS = 3
_PARTS_WITH_REPLY = 4


class HeaderError(ValueError):
    """A block of headers is none; the text says why, for a person."""


class Receiver(Protocol):
    """Who gets what was taken apart."""

    @property
    def is_connected(self) -> bool:
        """Whether the connection that the bytes came on still stands."""

    def deliver(self, sid: int, subject: bytes, reply: bytes, payload: bytes, block: bytes) -> None:
        """A message for the subscription `sid`; `block` holds its headers, with `NATS/1.0`."""

    async def _process_err(self, err_msg: str) -> None: ...
    async def _process_ping(self) -> None: ...
    async def _process_pong(self) -> None: ...
    async def _process_info(self, info: dict[str, Any]) -> None: ...


class Parser:
    """Takes the bytes of one connection as they come, and hands over what is whole.

    Source: NATS client protocol; the server writes one space between the parts of a line, and no
    part holds a space, a tab or a line break.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.reset()

    def reset(self) -> None:
        """Begin with a new connection."""
        self._pieces: list[bytes] = []
        self._here = 0
        self._needed = 0

    async def parse(self, data: bytes) -> None:
        """Take what came next.

        Raises:
            ProtocolError: a server would not say that.
        """
        self._here += len(data)
        if self._pieces:
            self._pieces.append(data)
            if self._here < self._needed:
                return  # Joined once, however many pieces a large message comes in.
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
        """Hand over all that is whole; where the rest begins."""
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
                    return size  # What else this connection has sent is void.
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
    """The headers of a message, one value per name, the last one where there are several.

    A status line's number and text are `Status` and `Description`. Bytes that are no UTF-8 become
    surrogates, as `os.fsdecode` makes them, so that they are sent on as they were. Source: NATS
    ADR-4.

    Raises:
        HeaderError: it is no block of headers.
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
    """Source: `MSG <subject> <sid> [reply-to] <#bytes>`, without the first word."""
    parts = line.split(b" ")
    reply = parts[2] if len(parts) == _PARTS_WITH_REPLY else b""
    return parts[0], int(parts[1]), reply, int(parts[-1])


def _headed_line(line: bytes) -> tuple[bytes, int, bytes, int, int]:
    """Source: `HMSG <subject> <sid> [reply-to] <#header bytes> <#total bytes>`, likewise."""
    parts = line.split(b" ")
    reply = parts[2] if len(parts) == _PARTS_WITH_REPLY + 1 else b""
    return parts[0], int(parts[1]), reply, int(parts[-2]), int(parts[-1])


def _read_info(text: bytes) -> dict[str, Any]:
    info = json.loads(text)
    if not isinstance(info, dict):
        raise ValueError("INFO is no object")  # noqa: TRY004 - as for text that is no JSON
    return info
