"""TCP or TLS transport that another thread can keep alive while the event loop is blocked."""

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
"""The most bytes read ahead of the reader, so that a slow reader's socket fills up."""
KEEP_ALIVE_BYTES = 256 * 1024 * 1024
"""The same while the loop is blocked: as much as a function may have requested by then."""

_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _LoopsLock:
    """A lock for the event loop and one other thread, with priority for the loop.

    Attributes:
        is_wanted: whether the loop waits for the lock.
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
        """Hold the lock in the other thread, which checks `is_wanted` between short steps."""
        with self._lock:
            yield self


class ThreadSafeTransport(Transport):
    """The client library's transport over a non-blocking socket, plain or with TLS.

    The event loop reads and writes, and all read bytes pass through one queue. When a function
    blocks the loop, the loop does neither, so the server would end the connection: the server gets
    no PONG, or cannot send because the socket is full. During a block another thread calls
    `keep_alive`, which reads and writes instead. That is why this is not an `asyncio` stream: no
    other thread may use the socket of a stream.

    Each write holds whole commands, so a PONG can be sent between two writes. All methods except
    `keep_alive` belong to one loop. An instance connects once.

    The lock guards the socket, `_incoming` and its size, `_outgoing`, `_ended` and `_failure`. The
    loop may read them without the lock: only the loop takes bytes out of `_incoming`, and `_wake`
    is called again after every later change.
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
        """Connect to the first of the host's addresses that accepts the connection.

        Raises:
            OSError: no address accepted it.
            TimeoutError: not done within `connect_timeout` seconds.
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
        """Start TLS on the connection that `connect` has made.

        Raises:
            OSError: the handshake failed, or the server had sent bytes before TLS.
            TimeoutError: not done within `connect_timeout` seconds.
        """
        self._unwatch()
        if self._failure:
            raise self._failure
        if self._socket is None or self._ended:
            raise ConnectionAbortedError("the connection ended before TLS began")
        if self._incoming:
            # An attacker on the network path could have injected it.
            raise ConnectionAbortedError("the server sent bytes before TLS began")
        plain, self._socket = self._socket, None
        name = uri if isinstance(uri, str) else uri.hostname
        async with asyncio.timeout(connect_timeout):
            self._socket = await secured(plain, ssl_context, name)
        self._is_tls = True
        self._watch()

    def write(self, payload: bytes) -> None:
        """Send whole commands; bytes that the socket does not take now are sent later."""
        with self._lock:
            if self._socket is None or self._failure:
                return
            self._outgoing += payload
            self._send(self._socket)
        self._wake()

    def writelines(self, payload: Sequence[bytes]) -> None:
        """As `write`, for several payloads."""
        self.write(b"".join(payload))

    async def drain(self) -> None:
        """Wait until the socket has taken all written bytes.

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
        """The next bytes that were received, at most one piece; empty at the end.

        Raises:
            OSError: the connection is lost.
        """
        if len(self._incoming) > 1:
            # A backlog, as after a block: other tasks run between its pieces.
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
        """The next line with its line break, or the last bytes before the connection ended.

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
        """Whether the connection has ended and all received bytes were read."""
        return self._is_lost and not self._incoming

    def close(self) -> None:
        """Close the socket; bytes that it has not taken are dropped."""
        self._unwatch()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
        self._wake()

    async def wait_closed(self) -> None:
        """Return at once: `close` has closed the socket."""

    def __bool__(self) -> bool:
        return True

    def keep_alive(self, commands: bytes = b"") -> None:
        """Read what the server has sent, and send a PONG; called by another thread.

        The PONG answers a PING that may be among the bytes: the server counts its unanswered PINGs,
        and accepts a PONG too many.

        Args:
            commands: whole commands, sent before the PONG.
        """
        with self._lock.lent() as lock:
            if self._socket is None or self._failure:
                return
            while self._incoming_bytes < KEEP_ALIVE_BYTES and not lock.is_wanted:
                if not self._receive(self._socket):
                    break
            self._outgoing += commands + PONG_PROTO
            self._send(self._socket)
        with contextlib.suppress(RuntimeError):  # The loop is closed.
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
        """Queue the next bytes of the socket; return whether there may be more. Needs the lock."""
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
        # A short piece means an empty socket; TLS returns one record at a time.
        return self._is_tls or len(piece) == CHUNK_BYTES

    def _send(self, connection: socket.socket) -> None:
        """Send as many waiting bytes as the socket takes. Needs the lock."""
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
        """Register the reads and writes that the loop must watch the socket for."""
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
