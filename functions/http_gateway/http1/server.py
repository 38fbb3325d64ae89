"""The connections of one listening socket: accepts, watches deadlines, drains."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from email.utils import formatdate

import structlog
from starlette.types import ASGIApp

from functions.http_gateway.connection_limits import ConnectionLimits
from functions.http_gateway.http1.connection import LINGER_S, HttpConnection, Refusals
from functions.http_gateway.http1.exchange import Exchange
from functions.http_gateway.unread_answers import UnreadAnswers

_BACKLOG = 2048
_LONGEST_SWEEP_S, _SHORTEST_SWEEP_S = 1.0, 0.02


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client may use.

    Attributes:
        max_head_bytes: bytes of a head; also of what frames a body, between two bytes of it.
        read_timeout_s: how long a client may take for a head, and for the rest of a body that was
            answered already.
        write_timeout_s: how long it may leave an answer unread that fills the buffers.
        max_unread_bytes: bytes of answers that wait for all clients which do not read them.
        drain_timeout_s: how long the requests that have begun may take when the server stops.
    """

    max_head_bytes: int
    read_timeout_s: float
    write_timeout_s: float
    max_unread_bytes: int
    drain_timeout_s: float


class Server:
    """Serves an ASGI application on one socket.

    One task looks at the deadlines of all connections, so a request costs no timer.

    Args:
        app: gets requests of type `http` and no lifespan events.
        limits: what one client may use.
        connections: how many clients there may be.
        refusals: answers to clients that send no request that can be read.
        log: gets what the application raises.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: ServerLimits,
        connections: ConnectionLimits,
        refusals: Refusals,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.limits = connections
        self.unread = UnreadAnswers(limits.max_unread_bytes)
        self.refusals = refusals
        self.read_timeout_s = limits.read_timeout_s
        self.write_timeout_s = limits.write_timeout_s
        self.is_draining = False
        self.date = _date()
        self.connections: set[HttpConnection] = set()
        self._app = app
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._emptied: asyncio.Event | None = None

    def stop(self) -> None:
        """Let `serve` answer the requests that have begun, and return."""
        self._stopping.set()

    async def serve(self, listener: socket.socket) -> None:
        """Serve until `stop`; a cancelled server closes every connection at once."""
        loop = self._loop = asyncio.get_running_loop()
        most_bytes = self._limits.max_head_bytes
        listening = await loop.create_server(
            lambda: HttpConnection(self, loop, most_bytes), sock=listener, backlog=_BACKLOG
        )
        sweep = asyncio.create_task(self._watch_deadlines())
        try:
            await self._stopping.wait()
            await self._drain(listening)
        finally:
            sweep.cancel()
            await self._abandon(listening)
            await asyncio.gather(sweep, return_exceptions=True)

    def forget(self, connection: HttpConnection) -> None:
        """Forget a closed connection."""
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections:
            self._emptied.set()

    def start(self, exchange: Exchange) -> None:
        """Let the application answer a request."""
        task = self._loop.create_task(exchange.run(self._app, self._log))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, listening: asyncio.Server) -> None:
        self.is_draining = True
        listening.close()
        for connection in list(self.connections):
            connection.drain_out()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._limits.drain_timeout_s)
        if self.connections:
            # The last bytes are on their way.
            self._emptied = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), LINGER_S)

    async def _abandon(self, listening: asyncio.Server) -> None:
        listening.close()
        for connection in list(self.connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch_deadlines(self) -> None:
        shortest_s = min(self.read_timeout_s, self.write_timeout_s)
        every_s = min(_LONGEST_SWEEP_S, max(_SHORTEST_SWEEP_S, shortest_s / 4))
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(every_s)
            self.date = _date()
            now_s = loop.time()
            for connection in list(self.connections):
                if connection.read_deadline_s <= now_s or connection.write_deadline_s <= now_s:
                    connection.abort()


def _date() -> bytes:
    return f"date: {formatdate(usegmt=True)}\r\n".encode()


__all__ = ["Server", "ServerLimits"]
