"""One request and its response, as ASGI's `receive` and `send`."""

import asyncio
from http import HTTPStatus
from typing import Protocol

import structlog
from starlette.types import ASGIApp, Message

from functions.http_gateway.http1.reader import Head

MAX_WAITING_BYTES = 65_536
"""More bytes of a body are not read from the socket until the application has taken these."""

_NO_CONTROLS = bytes([*b"\t\r\n", *range(0x20, 0x7F), *range(0x80, 0x100)])
_WITHOUT_BODY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class Wire(Protocol):
    """The connection of an exchange."""

    @property
    def date(self) -> bytes:
        """The header `Date`."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    async def drain(self) -> None:
        """Return when more may be written."""

    def take_more(self) -> None:
        """Go on reading from the client."""

    def finish(self, exchange: "Exchange") -> None:
        """The response is complete, or cannot be completed any more."""


HAS_WHOLE_BODY = "http_gateway.has_whole_body"
"""Name of an ASGI extension: a function that says whether `receive` would bring the whole body."""


class Exchange:
    """One request and its response.

    Attributes:
        is_whole: whether the whole body has arrived.
        is_started: whether the response has begun.
        is_complete: whether the response is complete.
        is_over: whether nothing can be sent any more: the client is gone, or what it sent cannot be
            read.
        keeps_alive: whether another exchange may follow on the connection.
    """

    def __init__(self, wire: Wire, head: Head) -> None:
        self.is_whole = self.is_started = self.is_complete = self.is_over = False
        self.keeps_alive = head.keeps_alive
        self._wire = wire
        self._scope = head.scope
        self._expects_continue = head.expects_continue
        self._is_head = head.scope["method"] == "HEAD"
        self._is_old = head.scope["http_version"] == "1.0"
        head.scope["extensions"] = {HAS_WHOLE_BODY: self._has_whole_body}
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._is_told = self._has_ended = False
        self._news: asyncio.Event | None = None
        self._head = b""
        self._is_chunked = False
        # Bytes of the body that are still to come; None when its head does not say.
        self._left_bytes: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether as many bytes of the body wait as may wait."""
        return self._waiting_bytes > MAX_WAITING_BYTES

    def add_body(self, part: bytes) -> None:
        """Take a part of the request's body; after the response it is dropped."""
        if not self.is_complete:
            self._parts.append(part)
            self._waiting_bytes += len(part)
            self._tell()

    def end_body(self) -> None:
        """Note that the whole body has arrived."""
        self.is_whole = True
        self._tell()

    def end_input(self) -> None:
        """Note that the client sends nothing more: it may be gone, or wait for its answer."""
        self._has_ended = True
        self._tell()

    def break_off(self) -> None:
        """Tell the application that the client is gone."""
        self.is_over = True
        self._tell()

    async def run(self, app: ASGIApp, log: structlog.stdlib.BoundLogger) -> None:
        """Let the application answer."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            log.exception("A request was not answered, its connection is closed.")
        finally:
            if not self.is_complete:
                self._wire.finish(self)

    async def receive(self) -> Message:
        """The next part of the body, or that the client is answered, or has closed its side.

        In the last case the client may still read: many close a connection in one step, some only
        their side of it.
        """
        if self._expects_continue and not self.is_started and not self.is_over:
            self._expects_continue = False
            if not self.is_whole:
                self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.is_over or self.is_complete):
            if self._parts or (self.is_whole and not self._is_told):
                parts, self._parts, self._waiting_bytes = self._parts, [], 0
                more = not self.is_whole
                self._is_told = not more
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                if more:
                    self._wire.take_more()  # This may bring the end, for the next call.
                return {"type": "http.request", "body": body, "more_body": more}
            if self._has_ended:
                break
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send the head, or a part of the body.

        Raises:
            RuntimeError: the application does not keep to ASGI or HTTP.
        """
        if self.is_over:
            return
        if message["type"] == "http.response.start" and not self.is_started:
            self.is_started = True
            # Sent together with the first part of the body.
            self._head = self._make_head(message["status"], list(message.get("headers", ())))
        elif message["type"] == "http.response.body" and self.is_started and not self.is_complete:
            await self._wire.drain()
            if not self.is_over:
                self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} is not what comes next")

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._is_head:
            body = b""
        elif self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        elif self._left_bytes is not None:
            self._left_bytes -= len(body)
            if self._left_bytes < 0 or (self._left_bytes and not more):
                raise RuntimeError("the body has not the length that its head says")
        head, self._head = self._head, b""
        if head or body:
            self._wire.write(head + body)
        if not more:
            self.is_complete = True
            self._tell()
            self._wire.finish(self)

    def _make_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        # A line break after each header, and no other control character. A regular expression takes
        # ten times as long.
        breaks = {lines.count(b"\r\n"), lines.count(b"\r"), lines.count(b"\n")}
        if breaks != {len(headers)} or lines.translate(None, _NO_CONTROLS):
            raise RuntimeError("a header of the response is not valid in HTTP")
        length, says_close = _read_own(headers)
        framing = b""
        if self._expects_continue and not self.is_whole:
            # Nobody can tell whether a body follows. Source: RFC 9110, section 10.1.1.
            self.keeps_alive = False
        if status in _WITHOUT_BODY:
            length = 0
        elif length is None and self._is_old:
            self.keeps_alive = False  # The end of the connection is the end of the body.
        elif length is None and not self._is_head:
            self._is_chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        self._left_bytes = length
        if says_close:
            self.keeps_alive = False
        elif not self.keeps_alive:
            framing += b"connection: close\r\n"
        elif self._is_old:
            framing += b"connection: keep-alive\r\n"
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return b"".join([line, lines, framing, self._wire.date, b"\r\n"])

    def _has_whole_body(self) -> bool:
        return self.is_whole

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()


def _read_own(headers: list[tuple[bytes, bytes]]) -> tuple[int | None, bool]:
    """The length in the response's headers, and whether they end the connection."""
    length, says_close = None, False
    for name, value in headers:
        match name.lower():
            case b"content-length":
                length = int(value)
            case b"connection":
                says_close = value.lower() == b"close"
    return length, says_close
