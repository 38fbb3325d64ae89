"""Keeps connections for the next message to the same destination."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar

from functions.outbound.transport.faults import ConnectionLost

IDLE_S = 30.0
MAX_IDLE = 256
MAX_IDLE_PER_KEY = 8


class Closable(Protocol):
    """A connection."""

    @property
    def is_open(self) -> bool:
        """Whether it can carry another message, as far as is known."""

    def close(self) -> None:
        """Close at once."""


K = TypeVar("K", bound=Hashable)
C = TypeVar("C", bound=Closable)
T = TypeVar("T")


class IdleConnections(Generic[K, C]):
    """Idle connections by key, the last used one first; closed when they were idle for long.

    A connection carries one message at a time, so no answer is taken for that of another message.
    The key has the tenant and the credentials, so no tenant uses the connection of another.

    Args:
        idle_s: how long a connection is kept.
        max_idle: how many are kept in all; the ones that were idle for longest are closed first.
        max_per_key: how many are kept for one key.
    """

    def __init__(
        self,
        *,
        idle_s: float = IDLE_S,
        max_idle: int = MAX_IDLE,
        max_per_key: int = MAX_IDLE_PER_KEY,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._max_idle = max_idle
        self._max_per_key = max_per_key
        # In the order in which they became idle.
        self._idle: dict[C, tuple[K, float]] = {}
        self._by_key: dict[K, list[C]] = {}
        self._sweep = self._loop.call_later(idle_s, self._close_expired)

    def __len__(self) -> int:
        return len(self._idle)

    async def run(
        self,
        key: K,
        work: Callable[[C], Awaitable[T]],
        *,
        connect: Callable[[], Awaitable[C]],
    ) -> T:
        """The result of `work` on an idle connection, or on a new one.

        A connection on which `work` failed is closed. `work` runs a second time only if the idle
        connection turns out to be closed.
        """
        idle = self.take(key)
        if idle is not None:
            try:
                return await self._run_on(idle, key, work)
            except ConnectionLost:
                # The other side closes idle connections when it likes.
                pass
        return await self._run_on(await connect(), key, work)

    def take(self, key: K) -> C | None:
        """An open connection, which is the caller's until `put`; None when there is none."""
        while kept := self._by_key.get(key):
            connection = kept[-1]
            self._remove(connection)
            if connection.is_open:
                return connection
            connection.close()
        return None

    def put(self, key: K, connection: C) -> None:
        """Keep a connection that has carried its message to the end."""
        if not connection.is_open or len(self._by_key.get(key, ())) >= self._max_per_key:
            connection.close()
            return
        if len(self._idle) >= self._max_idle:
            oldest = next(iter(self._idle))
            self._remove(oldest)
            oldest.close()
        self._idle[connection] = (key, self._loop.time())
        self._by_key.setdefault(key, []).append(connection)

    def close(self) -> None:
        """Close all; those that are in use are the callers'."""
        self._sweep.cancel()
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        self._by_key.clear()

    async def _run_on(self, connection: C, key: K, work: Callable[[C], Awaitable[T]]) -> T:
        try:
            result = await work(connection)
        except BaseException:
            connection.close()
            raise
        self.put(key, connection)
        return result

    def _remove(self, connection: C) -> None:
        key, _ = self._idle.pop(connection)
        kept = self._by_key[key]
        kept.remove(connection)
        if not kept:
            del self._by_key[key]

    def _close_expired(self) -> None:
        before_s = self._loop.time() - self._idle_s
        for connection, (_, since_s) in list(self._idle.items()):
            if since_s > before_s:
                break
            self._remove(connection)
            connection.close()
        self._sweep = self._loop.call_later(self._idle_s / 4, self._close_expired)


__all__ = ["Closable", "IdleConnections"]
