"""Reads the requests in the bytes of one connection. No input or output.

llhttp parses. It bounds nothing, so this module bounds what a client may send without a byte of a
body: the head, the framing of chunks, trailers, empty lines.
"""

import re
from functools import lru_cache
from typing import NamedTuple, Protocol
from urllib.parse import unquote

import httptools
from starlette.types import Scope

# A name or an address, and a port; empty where the target has none. Source: RFC 9110, section 7.2.
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
_SHORT_HOST_BYTES = 255
_VERSIONS = frozenset({"1.0", "1.1"})
_Headers = list[tuple[bytes, bytes]]


class BadHttp(Exception):  # noqa: N818 - a verdict on bytes, as Reject is
    """What a client sent is not a request that is read; no byte after it can be understood.

    Attributes:
        is_too_large: whether it is only too large.
    """

    def __init__(self, *, is_too_large: bool = False) -> None:
        self.is_too_large = is_too_large
        super().__init__("a head that is too large" if is_too_large else "not HTTP/1.1")


class Head(NamedTuple):
    """A request without its body.

    Attributes:
        scope: the ASGI scope, as far as the bytes say.
        keeps_alive: whether another request may follow on the connection.
        expects_continue: whether the client waits for 100 before it sends the body.
    """

    scope: Scope
    keeps_alive: bool
    expects_continue: bool


class Receiver(Protocol):
    """Gets each request in three steps."""

    def begin(self, head: Head) -> None:
        """A head is complete."""

    def add_body(self, part: bytes) -> None:
        """A part of the body."""

    def end(self) -> None:
        """The request is complete."""


class RequestReader:
    """Parses the bytes of one connection.

    Attributes:
        is_within: whether a part of a request has arrived and its rest has not.
        is_finished: whether the last request has said that none follows it.
    """

    def __init__(self, receiver: Receiver, max_head_bytes: int) -> None:
        self.is_within = False
        self.is_finished = False
        self._receiver = receiver
        self._max_bytes = max_head_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._fault: BadHttp | None = None
        # Bytes since the last byte of a body, or the last end of a request.
        self._framing_bytes = 0
        self._has_head = self._keeps_alive = self._is_upgrade = False
        self._url = b""
        self._headers: _Headers = []

    def feed(self, data: bytes) -> None:
        """Read some bytes; what they complete is told to the receiver.

        Raises:
            BadHttp: the bytes are no request; nothing may be fed after that.
        """
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self.is_finished:
                raise (self._fault or BadHttp()) from None
        if self._fault is not None:
            raise self._fault
        if self._framing_bytes > self._max_bytes:
            raise BadHttp(is_too_large=True)

    def on_message_begin(self) -> None:
        """A request begins. The parser calls this, and the other methods named `on_…`."""
        self.is_within = True
        self._has_head = False
        self._url = b""
        self._headers = []

    def on_url(self, part: bytes) -> None:
        """A part of the target."""
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if not self._has_head:  # Else it is a trailer, which nobody asked for.
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete, or that of a request for another protocol."""
        if self._fault is not None:
            return
        parser = self._parser
        if parser.should_upgrade():
            self._is_upgrade = True
            return
        self._has_head = True
        self._keeps_alive = parser.should_keep_alive()
        version = parser.get_http_version()
        head = _read_head(parser.get_method(), self._url, version, self._headers, self._keeps_alive)
        size_bytes = sum([len(name) + len(value) for name, value in self._headers])
        if head is None or size_bytes > self._max_bytes:
            self._fault = BadHttp(is_too_large=size_bytes > self._max_bytes)
        else:
            self._receiver.begin(head)

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        if self._fault is None:
            self._framing_bytes = 0
            self._receiver.add_body(part)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._fault is not None or self._is_upgrade:
            return
        self.is_within = False
        self.is_finished = not self._keeps_alive
        self._framing_bytes = 0
        self._receiver.end()

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read the request as if it asked for no other protocol, as RFC 9110, section 7.8 allows.

        The parser reads no body of such a request. Clients of Java ask for HTTP/2 so with their
        first request, whatever its body.
        """
        method = self._parser.get_method()
        if method == b"CONNECT":
            raise BadHttp
        lines = [b"%b %b HTTP/1.1" % (method, self._url)]
        lines += [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
        self._is_upgrade = False
        self._parser = httptools.HttpRequestParser(self)
        self._framing_bytes = 0
        self.feed(b"\r\n".join([*lines, b"", b""]))
        if rest and not self.is_finished:
            self.feed(rest)


def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value) is not None


# Most requests name one of a few. A long one would fill the memory with what its author likes.
_is_short_host = lru_cache(256)(_is_host)


def _read_head(
    method: bytes, url: bytes, version: str, headers: _Headers, keeps_alive: bool
) -> Head | None:
    """The head as the RFCs mean it; None for one that may mean two things to two readers."""
    hosts, expects_continue = 0, False
    for name, value in headers:
        if name == b"host":
            hosts += 1
            is_host = _is_short_host if len(value) <= _SHORT_HOST_BYTES else _is_host
            if not is_host(value):
                return None
        elif name == b"expect":
            expects_continue = value.lower() == b"100-continue" and version == "1.1"
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
            return None
    # Source: RFC 9112, section 3.2.
    if version not in _VERSIONS or hosts > 1 or (not hosts and version == "1.1"):
        return None
    if not url.isascii():
        return None
    raw_path, _, query = url.partition(b"?")
    path = raw_path.decode("ascii")
    scope = {
        "type": "http",
        "asgi": _ASGI,
        "http_version": version,
        "method": method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "state": {},
    }
    return Head(scope, keeps_alive, expects_continue)


_ASGI = {"version": "3.0", "spec_version": "2.4"}
