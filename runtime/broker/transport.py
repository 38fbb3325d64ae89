"""A TCP connection that another thread can keep alive while the event loop stands still."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self
from urllib.parse import ParseResult

from nats.aio.client import PONG_PROTO
from nats.aio.transport import Transport

from runtime.broker.dial import connected, secured

CHUNK_BYTES = 64 * 1024
AHEAD_BYTES = 1024 * 1024
"""How much is read before somebody asks for it, so that the socket of a slow reader fills up."""
STAND_IN_BYTES = 256 * 1024 * 1024
"""The same while the loop stands still: as much as a function may have pulled by then."""

_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _LoopsLock:
    """A lock for the loop and for one other thread, which gives way when the loop wants it.

    Attributes:
        is_wanted: whether the loop waits for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_wanted = False

    def __enter__(self) -> None:
        self.is_wanted = True
        self._lock.acquire()
        self.is_wanted = False

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextlib.contextmanager
    def lent(self) -> Iterator[Self]:
        """Hold it in the other thread, which looks at `is_wanted` between short pieces of work."""
        with self._lock:
            yield self


class ThreadSafeTransport(Transport):
    """The client library's transport over a socket of our own, plain or with TLS.

    The event loop reads and writes, and whatever is read passes through one queue. A loop that a
    function blocks does neither, so a server would end the connection: it hears no PONG, or finds
    no room for what it has to send. For that time `stand_in` does it, from another thread. That is
    why this is no `asyncio` stream: there, nobody else may touch the socket.

    Each write holds whole commands, which is what lets a PONG in between two of them. Of one
    instance, everything but `stand_in` belongs to one loop; it connects once.

    The lock guards the socket and what has come and goes: `_incoming` and its size, `_outgoing`,
    `_ended` and `_failure`. The loop may look at them without it, as nobody else takes anything out
    of `_incoming`, and what `_wake` has missed it is called for again.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = _LoopsLock()
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
            self._socket = await connected(uri.hostname or "", uri.port or 0)
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
        self._unwatch()
        if self._failure:
            raise self._failure
        if self._socket is None or self._ended:
            raise ConnectionAbortedError("the connection ended before TLS had begun")
        if self._incoming:
            # Whoever sits in between could have put it there.
            raise ConnectionAbortedError("the server sent more before TLS had begun")
        plain, self._socket = self._socket, None
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            self._socket = await secured(plain, ssl_context, name)
        self._is_tls = True
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
        """Whether the connection has ended, and everything before that was read."""
        return self._is_lost and not self._incoming

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
        with self._lock.lent() as lock:
            if self._socket is None or self._failure:
                return
            while self._incoming_bytes < STAND_IN_BYTES and not lock.is_wanted:
                if not self._receive(self._socket):
                    break
            self._outgoing += commands + PONG_PROTO
            self._send(self._socket)
        with contextlib.suppress(RuntimeError):  # The loop has ended meanwhile.
            self._loop.call_soon_threadsafe(self._wake)

    @property
    def _is_lost(self) -> bool:
        return self._ended or self._failure is not None or self._socket is None

    def _on_ready(self) -> None:
        with self._lock:
            if self._socket is None:
                return
            enough_bytes = min(AHEAD_BYTES, self._incoming_bytes + CHUNK_BYTES)
            while self._incoming_bytes < enough_bytes and self._receive(self._socket):
                pass
            self._send(self._socket)
        self._wake()

    def _wake(self) -> None:
        if self._incoming or self._is_lost:
            self._arrived.set()
        if not self._outgoing or self._is_lost:
            self._sent.set()
        self._watch()

    def _receive(self, connection: socket.socket) -> bool:
        """Queue a piece of what the socket holds; whether there may be more. Under the lock."""
        try:
            piece = connection.recv(CHUNK_BYTES)
        except _NOT_NOW:
            return False
        except OSError as failure:
            self._failure = failure
            return False
        if not piece:
            self._ended = True
            return False
        self._incoming.append(piece)
        self._incoming_bytes += len(piece)
        # A short piece was all; TLS hands out one record at a time.
        return self._is_tls or len(piece) == CHUNK_BYTES

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
