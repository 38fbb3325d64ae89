"""Connections to destinations that do not speak HTTP: guarded, and read in bounded pieces.

Every address is judged as that of a webhook is (`Connector`).
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import cast

from functions.outbound.transport.connector import Connector, Origin
from functions.outbound.transport.faults import ConnectionLost, TlsFailed
from functions.outbound.transport.resolver import Resolver
from runtime import AddressPolicy

READ_LIMIT_BYTES = 65_536


class _StreamProtocol(asyncio.StreamReaderProtocol):
    """Keeps the transport, from which the writer is made, and counts what has arrived."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=READ_LIMIT_BYTES)
        super().__init__(self.reader)
        self.transport: asyncio.BaseTransport | None = None
        self.received_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        super().data_received(data)


class Stream:
    """A connection that is read and written as bytes.

    Every wait ends at the deadline of the attempt, which the caller sets by `asyncio.timeout`.
    """

    def __init__(self, protocol: _StreamProtocol, writer: asyncio.StreamWriter) -> None:
        self._protocol = protocol
        self._reader = protocol.reader
        self._writer = writer
        self._read_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether the other side has not closed the connection, as far as is known."""
        return not (self._writer.is_closing() or self._reader.at_eof())

    async def read_some(self) -> bytes:
        """What has arrived, up to 64 kB; empty when the other side has closed.

        Raises:
            ConnectionLost: the connection broke.
        """
        try:
            return self._counted(await self._reader.read(READ_LIMIT_BYTES))
        except OSError:
            raise ConnectionLost from None

    async def read_exactly(self, count: int) -> bytes:
        """Exactly so many bytes; the caller bounds the number.

        Raises:
            ConnectionLost: the connection was closed before.
        """
        try:
            return self._counted(await self._reader.readexactly(count))
        except (asyncio.IncompleteReadError, OSError):
            raise ConnectionLost from None

    async def read_line(self) -> bytes:
        """The bytes up to the next line feed, which are at most 64 kB.

        Raises:
            ConnectionLost: the connection was closed before, or the line is too long.
        """
        try:
            return self._counted(await self._reader.readuntil(b"\n"))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            raise ConnectionLost from None

    async def write(self, data: bytes) -> None:
        """Send; returns when the operating system has taken most of it.

        Raises:
            ConnectionLost: the connection is closed.
        """
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            raise ConnectionLost from None

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Go on under TLS, and check the certificate against `name`.

        Raises:
            TlsFailed: the handshake failed, or bytes came before it. Whoever is between both sides
                could have sent these, and they would be read as if they had come under TLS.
        """
        if self._protocol.received_bytes != self._read_bytes:
            raise TlsFailed
        try:
            await self._writer.start_tls(context, server_hostname=name)
        except (OSError, ssl.SSLError):
            raise TlsFailed from None

    def close(self) -> None:
        """Close at once; unsent bytes are dropped."""
        self._writer.transport.abort()

    def _counted(self, data: bytes) -> bytes:
        self._read_bytes += len(data)
        return data


class Dialer:
    """Opens streams to hosts that tenants chose.

    Args:
        policy: which addresses may be connected to.
        nameservers: `ip` or `ip:port`; none for those of the system.
    """

    def __init__(self, policy: AddressPolicy, nameservers: Sequence[str] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(nameservers)
        self._connector = Connector(self._resolver, policy, make=_StreamProtocol)

    async def open(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, timeout_s: float
    ) -> Stream:
        """A new connection.

        Raises:
            DestinationRefused: the policy allows no address of the host.
            Fault: of the origin.
        """
        protocol = await self._connector.open(
            Origin(host, port, tls), self._loop.time() + timeout_s
        )
        # uvloop's transports are no subclasses of asyncio's.
        transport = cast("asyncio.WriteTransport", protocol.transport)
        writer = asyncio.StreamWriter(transport, protocol, protocol.reader, self._loop)
        return Stream(protocol, writer)

    async def close(self) -> None:
        """End the lookups."""
        await self._resolver.close()


__all__ = ["READ_LIMIT_BYTES", "Dialer", "Stream"]
