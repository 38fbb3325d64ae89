"""TCP proxy on loopback in front of a real server, which lets a test break connections."""

import asyncio
from pathlib import Path

from tests.support.listener import Listener

_CHUNK_BYTES = 65_536

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy(Listener):
    """Forwards to a port on loopback, or to a Unix socket, until it is `cut` or `silence`d.

    Attributes:
        withheld: bytes from both sides that `silence` held back.
    """

    def __init__(self, target: int | Path) -> None:
        super().__init__()
        self._at_end.append(self.reset)
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._near: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._is_cut = False
        self.withheld = b""

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._tasks)

    def cut(self) -> None:
        """Reset every connection, and every new connection at once."""
        # Keep the port: if it were closed, another process could take it.
        self._is_cut = True
        self.reset()

    def silence(self) -> None:
        """Forward nothing. Connections stay open and new connections are accepted."""
        self._flowing.clear()

    def say(self, line: bytes) -> None:
        """Send this to every client as if from the server, between two lines of the server."""
        for writer in self._near:
            writer.write(line)

    def heal(self) -> None:
        """Forward again, including the bytes that were held back."""
        self._is_cut = False
        self._flowing.set()

    def reset(self) -> None:
        """Reset every connection; new connections are served."""
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
        else:
            super()._accept(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near = (reader, writer)
        self._writers.add(near[1])
        self._near.add(near[1])
        writers = {near[1]}
        try:
            far = await self._connect()
            writers.add(far[1])
            self._writers.add(far[1])
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(near[0], far[1]))
                pumps.create_task(self._pump(far[0], near[1]))
        except* OSError:
            pass  # One side has gone, or the server does not run: so has the other side, then.
        finally:
            self._writers -= writers
            self._near -= writers
            for each in writers:
                each.transport.abort()

    async def _connect(self) -> Streams:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK_BYTES):
            if not self._flowing.is_set():
                self.withheld += data
            await self._flowing.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError  # The other direction ends with this one.
