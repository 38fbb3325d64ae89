"""Gives a client library connections that pass the guard, and that carry a bounded number of bytes.

Some protocols are too large to be written again, and their libraries resolve names and read answers
as they like. Such a library gets an event loop whose `create_connection` opens a guarded stream,
begins TLS on it, and copies what is inside after a look at it.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from functions.outbound.transport.faults import ConnectionLost
from functions.outbound.transport.streams import Dialer, Stream


class Check(Protocol):
    """Looks at what a destination sends."""

    def accept(self, data: bytes) -> bool:
        """Whether the next bytes may be passed on; if not, the connection ends."""


class Relay:
    """Copies bytes between a stream and a local socket, until either is closed.

    Args:
        stream: to the destination.
        check: looks at what the destination sends.
        max_bytes: how much the destination may send between two calls of `renew`.
    """

    def __init__(self, stream: Stream, check: Check, *, max_bytes: int) -> None:
        self._stream = stream
        self._check = check
        self._max_bytes = self._left_bytes = max_bytes
        self._tasks: list[asyncio.Task[None]] = []
        self._local: asyncio.StreamWriter | None = None

    async def begin(self) -> socket.socket:
        """The local socket."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            reader, self._local = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        for copy in (self._copy_out(reader), self._copy_in(self._local)):
            self._tasks.append(asyncio.create_task(copy))
        return theirs

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed."""
        return self._stream.is_open and not any(task.done() for task in self._tasks)

    def renew(self) -> None:
        """Let the destination send as much again."""
        self._left_bytes = self._max_bytes

    def close(self) -> None:
        """Close both sides."""
        self._stream.close()
        if self._local is not None:
            self._local.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def _copy_out(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionLost, OSError):
            while data := await reader.read(65_536):
                await self._stream.write(data)
        self._stream.close()

    async def _copy_in(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionLost, OSError):
            while data := await self._stream.read_some():
                self._left_bytes -= len(data)
                if self._left_bytes < 0 or not self._check.accept(data):
                    break
                writer.write(data)
                await writer.drain()
        # Waiting bytes are sent first: they may say why the destination has closed.
        writer.close()
        self._stream.close()


class GuardedLoop:
    """The event loop, but for `create_connection`, which opens relayed streams.

    Args:
        dialer: opens them.
        begin: what is done on a new stream first, such as TLS.
        check: makes what looks at the bytes of one stream.
        timeout_s: for opening one.
        max_bytes: how much the destination may send between two calls of `renew`.

    Attributes:
        relays: what was opened.
    """

    def __init__(
        self,
        dialer: Dialer,
        begin: Callable[[Stream], Awaitable[None]],
        check: Callable[[], Check],
        *,
        timeout_s: float,
        max_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._dialer = dialer
        self._begin = begin
        self._check = check
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self.relays: list[Relay] = []

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the loop has
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """Connect.

        Raises:
            DestinationRefused: the policy allows no address of the host.
            Fault: of the origin.
        """
        stream = await self._dialer.open(host, port, timeout_s=self._timeout_s)
        try:
            await self._begin(stream)
        except BaseException:
            stream.close()
            raise
        relay = Relay(stream, self._check(), max_bytes=self._max_bytes)
        self.relays.append(relay)
        local = await relay.begin()
        try:
            return await self._loop.create_unix_connection(factory, sock=local)
        except BaseException:
            local.close()
            raise


__all__ = ["Check", "GuardedLoop", "Relay"]
