"""Hearing at once what changed in the registry, so that a cache need not guess."""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import structlog

CHANNEL = "registry_changed"
EVERYTHING = "all"
_PING_EVERY_S = 5.0
_ANSWER_WITHIN_S = 5.0
_RETRY_AFTER_S = 1.0


class ChangeListener:
    """Listens on a connection of its own, which the pool must be able to spare.

    `on_change` gets `tenant/{id}`, `device/{tenant}/{device}`, `routes/{tenant}`, or `all` when
    anything may have changed: after every new connection, for what happened before is unknown.

    Attributes:
        trusted: True while every change is heard. A cache may be believed only then.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        on_change: Callable[[str], None],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.trusted = False
        self._pool = pool
        self._on_change = on_change
        self._log = log
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; returns when it listens, or when the first attempt has failed."""
        tried = asyncio.Event()
        self._task = asyncio.create_task(self._run(tried))
        await tried.wait()

    async def stop(self) -> None:
        """End, and give the connection back."""
        self.trusted = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, tried: asyncio.Event) -> None:
        while True:
            try:
                async with self._pool.acquire(timeout=_ANSWER_WITHIN_S) as connection:
                    await self._listen(connection, tried)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failure:
                self._log.warning(
                    "Changes of the registry are not heard; it is asked for every batch",
                    error_type=type(failure).__name__,
                )
            finally:
                self.trusted = False
                tried.set()
            await asyncio.sleep(_RETRY_AFTER_S)

    async def _listen(
        self,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
        tried: asyncio.Event,
    ) -> None:
        self._lost.clear()
        connection.add_termination_listener(self._on_lost)
        await connection.add_listener(CHANNEL, self._on_notification)
        try:
            self._on_change(EVERYTHING)
            self.trusted = True
            tried.set()
            while not self._lost.is_set():
                try:
                    # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes
                    # together with what it waits for.
                    async with asyncio.timeout(_PING_EVERY_S):
                        await self._lost.wait()
                except TimeoutError:
                    await connection.execute("SELECT 1", timeout=_ANSWER_WITHIN_S)
        finally:
            self.trusted = False
            if not connection.is_closed():
                connection.remove_termination_listener(self._on_lost)
                await asyncio.wait_for(
                    connection.remove_listener(CHANNEL, self._on_notification), _ANSWER_WITHIN_S
                )

    def _on_lost(self, _connection: Any) -> None:  # noqa: ANN401 - the driver's, unused
        self.trusted = False
        self._lost.set()

    def _on_notification(
        self,
        _connection: Any,  # noqa: ANN401 - the driver's, unused
        _pid: int,
        _channel: str,
        payload: object,
    ) -> None:
        self._on_change(str(payload))


__all__ = ["CHANNEL", "EVERYTHING", "ChangeListener"]
