"""A NATS client that sends arbitrary bytes, which no client library does."""

import asyncio
import json
from types import TracebackType
from typing import Self

from tests.support.servers import NatsServer

_OPTIONS = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}


class RawClient:
    """A connection to a nats-server that writes commands byte by byte."""

    def __init__(self, server: NatsServer) -> None:
        self._port = server.port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self._reader.readline()
        self._writer.write(b"CONNECT %b\r\n" % json.dumps(_OPTIONS).encode())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def publish(
        self, subject: bytes, payload: bytes = b"", *, block: bytes = b"", reply: bytes = b""
    ) -> None:
        """Write PUB, or HPUB with a block of headers."""
        names = subject + (b" " + reply if reply else b"")
        if block:
            line = b"HPUB %b %d %d\r\n" % (names, len(block), len(block) + len(payload))
        else:
            line = b"PUB %b %d\r\n" % (names, len(payload))
        self._writer.write(b"%b%b%b\r\n" % (line, block, payload))

    async def flush(self) -> None:
        """Return when the server has read everything and refused nothing."""
        self._writer.write(b"PING\r\n")
        async with asyncio.timeout(20):
            await self._writer.drain()
            while (line := await self._reader.readline()) != b"PONG\r\n":
                assert line.startswith((b"INFO", b"PING")), line
