"""Posts to origins, and keeps idle connections for the next request."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from functions.outbound.transport.connection import Answer, Connection
from functions.outbound.transport.connector import Origin
from functions.outbound.transport.faults import ConnectHurried, ConnectionLost, ConnectTimeout
from functions.outbound.transport.proxy import Proxy, make_connector
from functions.outbound.transport.resolver import Resolver
from runtime import AddressPolicy

IDLE_S = 30.0
MAX_IDLE = 1000
MAX_IDLE_PER_ORIGIN = 64
# The part of `timeout_s` after which an origin that is silent is to blame for it.
_FAIR_SHARE = 0.5


@dataclass(slots=True)
class _Idle:
    """The idle connections of one origin, the last used one at the end, and when each became so."""

    connections: list[tuple[Connection, float]] = field(default_factory=list)


class HttpClient:
    """Sends requests, each bounded in time. A function has one client, and closes it at its stop.

    No limit on connections: the caller limits the requests to one origin, and a limit here would
    make live endpoints wait for those that hang.

    Args:
        policy: which addresses may be connected to.
        timeout_s: time limit until an answer's status; resolving, connecting and TLS included.
        excerpt_bytes: how much of an answer's body is kept.
        nameservers: `ip` or `ip:port`; none for those of the system.
        proxy: through which every connection is made; None for none.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        timeout_s: float,
        excerpt_bytes: int,
        nameservers: Sequence[str] = (),
        proxy: Proxy | None = None,
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._resolver = Resolver(nameservers)
        self._connector = make_connector(
            self._resolver,
            policy,
            make=lambda: Connection(loop, excerpt_bytes=excerpt_bytes),
            proxy=proxy,
        )
        self._idle: dict[Origin, _Idle] = {}
        self._idle_count = 0
        self._sweep = loop.call_later(IDLE_S, self._close_expired)

    async def send(
        self, origin: Origin, request: bytes, *, deadline_s: float | None = None
    ) -> Answer:
        """Send a request, head and body, and read the beginning of its answer.

        A request is sent a second time only if an idle connection turns out to be closed before the
        first byte of an answer.

        Args:
            origin: where to.
            request: all bytes of it.
            deadline_s: time of the loop's clock at which a status must have come; None for
                `timeout_s` from now.

        Raises:
            DestinationRefused: the policy allows no address of the host.
            Fault: no answer.
        """
        if deadline_s is None:
            deadline_s = self._loop.time() + self._timeout_s
        connection = self._take_idle(origin)
        answer: Answer | None = None
        if connection is not None:
            try:
                answer = await connection.exchange(request, deadline_s)
            except ConnectionLost:
                if connection.has_answer_bytes:
                    raise
        if connection is None or answer is None:
            connection = await self._open(origin, deadline_s)
            answer = await connection.exchange(request, deadline_s)
        self._keep(origin, connection)
        return answer

    async def _open(self, origin: Origin, deadline_s: float) -> Connection:
        began_s = self._loop.time()
        try:
            return await self._connector.open(origin, deadline_s)
        except ConnectTimeout:
            if self._loop.time() - began_s < _FAIR_SHARE * self._timeout_s:
                raise ConnectHurried from None
            raise

    async def close(self) -> None:
        """Close every idle connection, and the resolver."""
        self._sweep.cancel()
        for idle in self._idle.values():
            for connection, _ in idle.connections:
                connection.close()
        self._idle.clear()
        await self._resolver.close()

    def _take_idle(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle is not None and idle.connections:
            connection, _ = idle.connections.pop()
            self._idle_count -= 1
            if connection.is_reusable:
                return connection
            connection.close()
        return None

    def _keep(self, origin: Origin, connection: Connection) -> None:
        if not connection.is_open:
            connection.close()
            return
        idle = self._idle.get(origin)
        if idle is None:
            idle = self._idle[origin] = _Idle()
        if self._idle_count >= MAX_IDLE or len(idle.connections) >= MAX_IDLE_PER_ORIGIN:
            connection.close()
            return
        idle.connections.append((connection, self._loop.time()))
        self._idle_count += 1

    def _close_expired(self) -> None:
        before_s = self._loop.time() - IDLE_S
        for origin, idle in list(self._idle.items()):
            kept = [(c, since_s) for c, since_s in idle.connections if since_s > before_s]
            for connection, since_s in idle.connections:
                if since_s <= before_s:
                    connection.close()
            self._idle_count -= len(idle.connections) - len(kept)
            idle.connections = kept
            if not kept:
                del self._idle[origin]
        self._sweep = self._loop.call_later(IDLE_S / 4, self._close_expired)


__all__ = ["IDLE_S", "HttpClient"]
