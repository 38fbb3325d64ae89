"""A TCP connection that another thread can keep alive while the event loop stands still."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from urllib.parse import ParseResult

from nats.aio.client import PONG_PROTO
from nats.aio.transport import Transport

CHUNK_BYTES = 64 * 1024
AHEAD_BYTES = 1024 * 1024
"""How much is read before somebody asks for it, so that the socket of a slow reader fills up."""
STAND_IN_BYTES = 256 * 1024 * 1024
"""The same while the loop stands still: as much as a function may have pulled by then."""

_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class KeptTransport(Transport):
    """The client library's transport over a socket of our own, plain or with TLS.

    The event loop reads and writes, and whatever is read passes through one queue. A loop that a
    function blocks does neither, so a server would end the connection: it hears no PONG, or finds
    no room for what it has to send. For that time `stand_in` does it, from another thread. That is
    why this is no `asyncio` stream: there, nobody else may touch the socket.

    Each write holds whole commands, which is what lets a PONG in between two of them. Of one
    instance, everything but `stand_in` belongs to one loop; it connects once.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_tls = False
        self._incoming: deque[bytes] = deque()
        self._incoming_bytes = 0
        self._outgoing = bytearray()
        self._ended = False
        self._failure: OSError | None = None
        self._reads = False
        self._writes = False
        self._arrived = asyncio.Event()
        self._sent = asyncio.Event()

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect to the first of the host's addresses that takes us.

        Raises:
            OSError: none did.
            TimeoutError: not in so many seconds.
        """
        async with asyncio.timeout(connect_timeout):
            self._socket = await _connected(self._loop, uri.hostname or "", uri.port or 0)
        self._watch()

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,
        connect_timeout: int,
    ) -> None:
        """Go on with TLS on the connection that `connect` has made.

        Raises:
            OSError: the handshake failed, or the server had said more already than it may.
            TimeoutError: not in so many seconds.
        """
        plain = self._connection
        self._unwatch()
        if self._incoming:
            # Whoever sits in between could have put it there.
            raise ConnectionAbortedError("the server sent more before TLS had begun")
        # Wrapping takes the socket over, and leaves nothing to close if it was reset meanwhile.
        self._socket = None
        name = uri if isinstance(uri, str) else uri.hostname
        secured = ssl_context.wrap_socket(
            plain, server_hostname=name, do_handshake_on_connect=False
        )
        self._socket, self._is_tls = secured, True
        async with asyncio.timeout(connect_timeout):
            await _shake_hands(self._loop, secured)
        self._watch()

    def write(self, payload: bytes) -> None:
        """Send whole commands; what the socket does not take now follows by itself."""
        with self._lock:
            if self._socket is None or self._failure:
                return
            self._outgoing += payload
            self._send(self._socket)
        self._wake()

    def writelines(self, payload: Sequence[bytes]) -> None:
        """As `write`, for several."""
        self.write(b"".join(payload))

    async def drain(self) -> None:
        """Wait until the socket has taken all that was written.

        Raises:
            OSError: the connection is lost.
        """
        while self._outgoing and not self._is_lost:
            self._sent.clear()
            await self._sent.wait()
        if self._failure:
            raise self._failure
        if self._outgoing:
            raise ConnectionResetError("the connection ended with bytes unsent")

    async def read(self, buffer_size: int) -> bytes:
        """What came next, a piece at a time; nothing at the end.

        Raises:
            OSError: the connection is lost.
        """
        if len(self._incoming) > 1:
            # A backlog, as after a block: others get their turn between its pieces.
            await asyncio.sleep(0)
        while not self._incoming:
            if self._failure:
                raise self._failure
            if self._is_lost:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        with self._lock:
            piece = self._incoming.popleft()
            self._incoming_bytes -= len(piece)
        self._watch()
        return piece

    async def readline(self) -> bytes:
        """The next line with its end, or what there was before the connection ended.

        Raises:
            OSError: the connection is lost.
        """
        line = bytearray()
        while piece := await self.read(CHUNK_BYTES):
            line += piece
            end = line.find(b"\n") + 1
            if end:
                with self._lock:
                    if rest := bytes(line[end:]):
                        self._incoming.appendleft(rest)
                        self._incoming_bytes += len(rest)
                return bytes(line[:end])
        return bytes(line)

    def at_eof(self) -> bool:
        """Whether the server has ended the connection and everything before that was read."""
        return self._ended and not self._incoming

    def close(self) -> None:
        """Close the socket, whatever it has not taken yet."""
        self._unwatch()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
        self._wake()

    async def wait_closed(self) -> None:
        """Nothing to wait for: `close` has closed it."""

    def __bool__(self) -> bool:
        return True

    def stand_in(self, commands: bytes = b"") -> None:
        """Read what the server has sent and tell it that we are here; for another thread.

        The PONG answers whatever PING may be among it: the server counts those without one, and
        takes one too many.

        Args:
            commands: whole ones, sent before.
        """
        with self._lock:
            if self._socket is None or self._failure:
                return
            self._receive(self._socket, STAND_IN_BYTES)
            self._outgoing += commands + PONG_PROTO
            self._send(self._socket)
        with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
            self._loop.call_soon_threadsafe(self._wake)

    @property
    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionAbortedError("the connection is closed")
        return self._socket

    @property
    def _is_lost(self) -> bool:
        return self._ended or self._failure is not None or self._socket is None

    def _on_ready(self) -> None:
        with self._lock:
            if self._socket is None:
                return
            self._receive(self._socket, min(AHEAD_BYTES, self._incoming_bytes + CHUNK_BYTES))
            self._send(self._socket)
        self._wake()

    def _wake(self) -> None:
        if self._incoming or self._is_lost:
            self._arrived.set()
        if not self._outgoing or self._is_lost:
            self._sent.set()
        self._watch()

    def _receive(self, connection: socket.socket, limit_bytes: int) -> None:
        """Queue what the socket holds; under the lock."""
        while self._incoming_bytes < limit_bytes and not self._ended and not self._failure:
            try:
                piece = connection.recv(CHUNK_BYTES)
            except _NOT_NOW:
                return
            except OSError as failure:
                self._failure = failure
                return
            if not piece:
                self._ended = True
                return
            self._incoming.append(piece)
            self._incoming_bytes += len(piece)
            if len(piece) < CHUNK_BYTES and not self._is_tls:
                return  # That was all; TLS hands out one record at a time.

    def _send(self, connection: socket.socket) -> None:
        """Send what is waiting, as much as the socket takes; under the lock."""
        while self._outgoing and not self._failure:
            try:
                taken = connection.send(self._outgoing)
            except _NOT_NOW:
                return
            except OSError as failure:
                self._failure = failure
                return
            del self._outgoing[:taken]

    def _watch(self) -> None:
        """Have the loop watch the socket for what is wanted of it now."""
        if self._socket is None:
            return
        reads = not self._is_lost and self._incoming_bytes < AHEAD_BYTES
        writes = not self._is_lost and bool(self._outgoing)
        if reads and not self._reads:
            self._loop.add_reader(self._socket, self._on_ready)
        elif self._reads and not reads:
            self._loop.remove_reader(self._socket)
        if writes and not self._writes:
            self._loop.add_writer(self._socket, self._on_ready)
        elif self._writes and not writes:
            self._loop.remove_writer(self._socket)
        self._reads, self._writes = reads, writes

    def _unwatch(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
        self._reads = self._writes = False


async def _connected(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A socket that is connected to one of the host's addresses, tried in their order."""
    failure = OSError("the name has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        tried = socket.socket(family, kind, protocol)
        try:
            tried.setblocking(False)
            tried.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(tried, address)
        except OSError as refusal:
            tried.close()
            failure = refusal
        except BaseException:
            tried.close()
            raise
        else:
            return tried
    raise failure


async def _shake_hands(loop: asyncio.AbstractEventLoop, secured: ssl.SSLSocket) -> None:
    while True:
        try:
            return secured.do_handshake()
        except ssl.SSLWantReadError:
            await _until(secured, loop.add_reader, loop.remove_reader)
        except ssl.SSLWantWriteError:
            await _until(secured, loop.add_writer, loop.remove_writer)


async def _until(
    ready: socket.socket, add: Callable[..., None], remove: Callable[..., bool]
) -> None:
    """Wait until the loop says that the socket can be read, or written."""
    event = asyncio.Event()
    add(ready, event.set)
    try:
        await event.wait()
    finally:
        remove(ready)
