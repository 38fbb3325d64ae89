"""A PostgreSQL pooler in transaction mode, like pgbouncer with `pool_mode = transaction`.

Each transaction gets the server connection that has been idle for longest. Session state, such as
LISTEN, prepared statements and session locks, stays with the server connection and does not follow
the client. A notification on a connection without a client is dropped.
"""

import asyncio
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.listener import Listener

_READY, _QUERY, _SYNC, _TERMINATE = b"Z", b"Q", b"S", b"X"
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


async def _read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The type, and the whole message."""
    head = await reader.readexactly(5)
    [length] = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)


@dataclass(eq=False)
class _Backend:
    """A connection to the server, and its present client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    client: "_Client | None" = None


class TransactionPooler(Listener):
    """Listens on loopback in front of a PostgreSQL's Unix socket.

    Args:
        target: path of the socket.

    Attributes:
        dropped: how many messages came on a server connection without a client.
    """

    def __init__(self, target: Path) -> None:
        super().__init__()
        self._at_end.append(self._close_backends)
        self.dropped = 0
        self._target = target
        self._idle: deque[_Backend] = deque()
        self._freed = asyncio.Condition()
        self._backends: list[_Backend] = []

    def _close_backends(self) -> None:
        for backend in self._backends:
            backend.writer.close()

    def dsn(self, direct: str) -> str:
        """The address of a database through the pooler; `direct` is its address without it."""
        found = urlsplit(direct)
        user = f"{found.username}:{found.password or 'unused'}"
        return f"postgresql://{user}@127.0.0.1:{self.port}{found.path}?sslmode=disable"

    async def take(self, client: "_Client") -> _Backend:
        """A server connection for one transaction."""
        async with self._freed:
            await self._freed.wait_for(lambda: bool(self._idle))
            backend = self._idle.popleft()
            backend.client = client
            return backend

    async def give_back(self, backend: _Backend) -> None:
        """Return the server connection after the transaction."""
        async with self._freed:
            backend.client = None
            self._idle.append(backend)
            self._freed.notify()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            backend = await self._log_in(reader, writer)
            await self.give_back(backend)
            relaying = asyncio.create_task(self._relay(backend))
            self._tasks.add(relaying)
            await _Client(self, reader, writer).run()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _log_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Backend:
        """Let the client log in at the server, on a connection that is then shared."""
        backend = _Backend(*await asyncio.open_unix_connection(str(self._target)))
        self._backends.append(backend)
        [length] = struct.unpack("!i", await reader.readexactly(4))
        startup = struct.pack("!i", length) + await reader.readexactly(length - 4)
        assert startup != _SSL_REQUEST
        backend.writer.write(startup)
        while True:
            kind, message = await _read_message(backend.reader)
            writer.write(message)
            if kind == _READY:
                return backend
            if kind == b"R" and struct.unpack("!i", message[5:9]) not in {(0,), (12,)}:
                backend.writer.write((await _read_message(reader))[1])

    async def _relay(self, backend: _Backend) -> None:
        while True:
            try:
                kind, message = await _read_message(backend.reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            client = backend.client
            if client is None:
                self.dropped += 1
            else:
                await client.receive(backend, kind, message)


class _Client:
    """One client, which has a server connection during a transaction."""

    def __init__(
        self, pooler: TransactionPooler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._pooler = pooler
        self._reader = reader
        self._writer = writer
        self._backend: _Backend | None = None
        self._unanswered = 0
        self._is_synced = True

    async def run(self) -> None:
        while True:
            kind, message = await _read_message(self._reader)
            if kind == _TERMINATE:
                return
            if self._backend is None:
                self._backend = await self._pooler.take(self)
            self._is_synced = kind in {_QUERY, _SYNC}
            self._unanswered += self._is_synced
            self._backend.writer.write(message)

    async def receive(self, backend: _Backend, kind: bytes, message: bytes) -> None:
        self._writer.write(message)
        if kind != _READY:
            return
        self._unanswered -= 1
        if message[5:6] == b"I" and not self._unanswered and self._is_synced:
            self._backend = None
            await self._pooler.give_back(backend)
