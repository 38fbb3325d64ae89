"""One function's share of the PostgreSQL pool: asyncpg's interface with a limit of its own."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from runtime.call.call_task import current_call
from runtime.errors import NoConnection

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]

LEAST_WAIT_S = 10.0
LONG_WAIT_S = 0.01


class FunctionPool:
    """The pool of `ctx.postgres`: as `asyncpg.Pool`, with at most `connections` at a time.

    A call that waits for a connection gets its time limit anew, see `has_waited`: other calls of
    the function hold the connections, and each of them is ended by its own limit.

    Args:
        pool: the pool of all functions of the process. Its owner closes it.
        connections: the most connections that the function may hold at once.
        timeout_s: the time limit of the function's calls.

    Attributes:
        connections: the most connections that the function may hold at once.
    """

    def __init__(self, pool: "Pool", connections: int, timeout_s: float) -> None:
        self._pool = pool
        self.connections = connections
        self.follow_timeout(timeout_s)
        self._free = asyncio.Semaphore(connections)
        self._held: set[Connection] = set()
        self._waiting: Counter[asyncio.Task[Any] | None] = Counter()
        self._waited: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._time = asyncio.get_running_loop().time

    def follow_timeout(self, timeout_s: float) -> None:
        """Follow the function's time limit, which a reload may change."""
        # Long enough for the calls before it in a usual queue. Not for ever: a call that holds one
        # connection and waits for another may wait for itself.
        self._wait_s = max(LEAST_WAIT_S, 2 * timeout_s)

    def has_waited(self, task: "asyncio.Task[Any]") -> bool:
        """Whether a task's call waits for a connection, or waited since the last check."""
        waited = task in self._waited
        self._waited.discard(task)
        return waited or task in self._waiting

    def acquire(self, *, timeout: float | None = None) -> "_Acquiring":
        """Acquire a connection, with `await` or `async with`.

        Raises:
            NoConnection: no connection was free within `timeout` seconds; without `timeout`, within
                twice the function's time limit.
        """
        return _Acquiring(self, timeout)

    async def release(self, connection: "Connection", *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        """Release a connection."""
        try:
            await self._pool.release(connection, timeout=timeout)
        finally:
            if connection in self._held:
                self._held.discard(connection)
                self._free.release()

    async def _take(self, limit_s: float | None) -> "Connection":
        task, began_s = current_call(), self._time()
        self._waiting[task] += 1
        try:
            async with asyncio.timeout(self._wait_s if limit_s is None else limit_s) as wait:
                connection = await self._take_in_turn()
        except TimeoutError:
            if not wait.expired():
                raise  # The driver's own timeout: the server does not answer.
            held = len(self._held)
            reason = f"no connection was free, the function holds {held} of {self.connections}"
            raise NoConnection(reason) from None
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
            if task is not None and self._time() - began_s > LONG_WAIT_S:
                self._waited.add(task)
        self._held.add(connection)
        return connection

    async def _take_in_turn(self) -> "Connection":
        await self._free.acquire()
        try:
            return await self._pool.acquire()
        except BaseException:
            self._free.release()
            raise

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the pool has
        """The pool's attributes that need no connection, such as `get_size`."""
        if name in _NOT_FOR_FUNCTIONS:
            raise AttributeError(f"only the host may call {name}: the pool is shared")
        return getattr(self._pool, name)


class _Acquiring:
    """The result of `acquire`, for `await` or `async with`."""

    __slots__ = ("_connection", "_limit_s", "_pool")

    def __init__(self, pool: FunctionPool, limit_s: float | None) -> None:
        self._pool = pool
        self._limit_s = limit_s
        self._connection: Connection | None = None

    def __await__(self) -> Generator[Any, None, "Connection"]:
        return self._pool._take(self._limit_s).__await__()  # noqa: SLF001 - of this module

    async def __aenter__(self) -> "Connection":
        self._connection = await self
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._pool.release(connection)


_NOT_FOR_FUNCTIONS = frozenset({"close", "terminate", "expire_connections", "set_connect_args"})


def _on_a_connection(name: str) -> Callable[..., Awaitable[Any]]:
    async def call(self: FunctionPool, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        async with self.acquire() as connection:
            return await getattr(connection, name)(*arguments, **options)

    call.__name__ = name
    call.__doc__ = f"As `asyncpg.Connection.{name}`, on a connection of the function's share."
    return call


for _name in (
    *("execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval"),
    *("copy_from_query", "copy_from_table", "copy_records_to_table", "copy_to_table"),
):
    setattr(FunctionPool, _name, _on_a_connection(_name))


__all__ = ["FunctionPool"]
