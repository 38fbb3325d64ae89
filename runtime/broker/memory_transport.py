"""Transport to a server in this process, for tests: bytes go through memory instead of a socket.

A server is registered under a host name; a client that connects to `nats://NAME` gets a
`MemoryTransport` to it, and everything above the transport runs unchanged.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol
from urllib.parse import ParseResult

from nats.aio.transport import Transport


class Session(Protocol):
    """The server's side of one connection."""

    def receive(self, data: bytes) -> None:
        """Take bytes of the client; any split of the commands is allowed."""

    def close(self) -> None:
        """Forget the connection."""


Accept = Callable[[Callable[[bytes], None], Callable[[], None]], Session]
"""Accepts a connection: gets a function that sends bytes to the client, and one that ends the
connection."""

_servers: dict[str, Accept] = {}


def register(name: str, accept: Accept) -> Callable[[], None]:
    """Let clients connect to `nats://NAME`; the returned function ends that.

    Raises:
        ValueError: the name is taken.
    """
    if name in _servers:
        raise ValueError(f"a server in memory has the name {name} already")
    _servers[name] = accept
    return lambda: _servers.pop(name, None) and None


def is_registered(name: str | None) -> bool:
    """Whether a server in this process has the name."""
    return name in _servers


class MemoryTransport(Transport):
    """The client library's transport, without a socket. An instance connects once."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._incoming: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._ended = False

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect to the registered server.

        Raises:
            ConnectionRefusedError: the server has ended.
        """
        accept = _servers.get(uri.hostname or "")
        if accept is None:
            raise ConnectionRefusedError(f"the server in memory {uri.hostname} has ended")
        self._session = accept(self._take, self._end)

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: int,
    ) -> None:
        """Refuse TLS.

        Raises:
            ConnectionAbortedError: always.
        """
        raise ConnectionAbortedError("a server in memory has no TLS")

    def write(self, payload: bytes) -> None:
        """Pass bytes to the server."""
        if self._session is not None and not self._ended:
            self._session.receive(bytes(payload))

    def writelines(self, payload: Sequence[bytes]) -> None:
        """As `write`, for several payloads."""
        self.write(b"".join(payload))

    async def drain(self) -> None:
        """Check that the connection stands.

        Raises:
            ConnectionResetError: it has ended.
        """
        if self._ended:
            raise ConnectionResetError("the connection ended")

    async def read(self, buffer_size: int) -> bytes:
        """The next bytes of the server; empty at the end."""
        while not self._incoming:
            if self._ended:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        received = b"".join(self._incoming)
        self._incoming.clear()
        return received

    async def readline(self) -> bytes:
        """The next line with its line break."""
        line, _, rest = (await self.read(0)).partition(b"\n")
        if rest:
            self._incoming.appendleft(rest)
        return line + b"\n"

    def at_eof(self) -> bool:
        """Whether the connection has ended and all received bytes were read."""
        return self._ended and not self._incoming

    def close(self) -> None:
        """End the connection."""
        if self._session is not None:
            self._session.close()
            self._session = None
        self._end()

    async def wait_closed(self) -> None:
        """Return at once."""

    def keep_alive(self, commands: bytes = b"") -> None:
        """Do nothing: a server in memory never waits for a PONG."""

    def __bool__(self) -> bool:
        return True

    def _take(self, data: bytes) -> None:
        self._incoming.append(data)
        self._arrived.set()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()
