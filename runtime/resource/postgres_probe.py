"""Checks that PostgreSQL answers, on a connection that nothing else uses."""

import asyncio
import contextlib

import asyncpg

from runtime.resource.postgres import connect, outages

LIMIT_S = 2.0
CLOSE_LIMIT_S = 1.0


class PostgresProbe:
    """One connection beside the pool, opened on demand and again after a loss.

    On a connection of the pool the probe would wait for functions that hold all of them, and report
    a healthy server as unavailable.

    Args:
        dsn: the server's address.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._turn = asyncio.Lock()

    async def check(self) -> None:
        """Return when the server answers.

        Raises:
            Unavailable: the server does not answer, or not in time.
        """
        async with self._turn:
            try:
                with outages():
                    async with asyncio.timeout(LIMIT_S):
                        await self._ask()
            except BaseException:
                self._drop()
                raise

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(TimeoutError, OSError, asyncpg.InterfaceError):
                await connection.close(timeout=CLOSE_LIMIT_S)

    async def _ask(self) -> None:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._dsn)
        await self._connection.fetchval("SELECT 1")

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
