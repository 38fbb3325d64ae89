"""An HTTP proxy on loopback that takes CONNECT alone, as a test tells it."""

import asyncio
import contextlib
import ssl

from tests.support.listener import Listener


class ConnectProxy(Listener):
    """Connects to where it is asked to, or answers another status.

    Attributes:
        asked: the heads of the requests.
        answer: what it answers in place of connecting; None to connect.
        target: the port on loopback to which it connects, whatever it was asked for.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.asked: list[str] = []
        self.answer: bytes | None = None
        self.target = target

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.decode("latin-1"))
            if self.answer is None:
                await self._tunnel(reader, writer)
            else:
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            return
        finally:
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pumps = [
            asyncio.ensure_future(_pump(reader, far_writer)),
            asyncio.ensure_future(_pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            far_writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
