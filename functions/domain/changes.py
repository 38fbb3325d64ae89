"""Listens for PostgreSQL notifications about registry changes, to invalidate caches."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import asyncpg
import structlog

CHANNEL = "registry_changed"
EVERYTHING = "all"
_PROOF = "proof/"
_PROVE_EVERY_S = 5.0
_ANSWER_WITHIN_S = 5.0
_RETRY_AFTER_S = 1.0
NO_OTHERS: Mapping[str, Callable[[str], None]] = MappingProxyType({})


class NotHeard(Exception):  # noqa: N818 - names what happened
    """The listener's own notification did not come back."""


class ChangeListener:
    """Calls `on_change` for every notification, on a connection of its own.

    The pool must have room for this connection and one more. Every 5 s the listener sends a
    notification on another connection and waits for it: a pooler between host and server may give
    the listening connection to other clients, and nothing else shows that.

    `on_change` gets `tenant/{id}`, `device/{tenant}/{device}`, `routes/{tenant}`, or `all` when
    anything may have changed. `all` follows every new connection, as earlier changes were missed.

    Attributes:
        trusted: True while every change arrives. Use cached values only then.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        on_change: Callable[[str], None],
        log: structlog.stdlib.BoundLogger,
        *,
        channel: str = CHANNEL,
        others: Mapping[str, Callable[[str], None]] = NO_OTHERS,
    ) -> None:
        """`others` are heard on the same connection: channels of which a lost text does no harm."""
        self.trusted = False
        self._channel = channel
        self._others = others
        self._pool = pool
        self._on_change = on_change
        self._log = log
        self._lost = asyncio.Event()
        self._proof = ""
        self._proved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task. Returns when it listens, or when its first attempt has failed."""
        tried = asyncio.Event()
        self._task = asyncio.create_task(self._run(tried))
        await tried.wait()

    async def stop(self) -> None:
        """Stop the task and return its connection to the pool."""
        self.trusted = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, tried: asyncio.Event) -> None:
        while True:
            try:
                async with self._pool.acquire(timeout=_ANSWER_WITHIN_S) as connection:
                    await self._listen(connection, tried)
            except Exception as failure:  # noqa: BLE001 - this task must go on
                self._log.warning(
                    "Changes of the registry are not heard; it is asked for every batch"
                    if self._channel == CHANNEL
                    else "Notifications of the database are not heard; it is asked at intervals",
                    channel=self._channel,
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
        await connection.add_listener(self._channel, self._on_notification)
        for channel in self._others:
            await connection.add_listener(channel, self._on_other)
        try:
            await self._prove()
            self._on_change(EVERYTHING)
            self.trusted = True
            tried.set()
            while not await _is_set_within(self._lost, _PROVE_EVERY_S):
                await self._prove()
        finally:
            self.trusted = False
            if not connection.is_closed():
                connection.remove_termination_listener(self._on_lost)
                await asyncio.wait_for(
                    self._unlisten(connection),
                    _ANSWER_WITHIN_S,
                )

    async def _unlisten(
        self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
    ) -> None:
        await connection.remove_listener(self._channel, self._on_notification)
        for channel in self._others:
            await connection.remove_listener(channel, self._on_other)

    async def _prove(self) -> None:
        """Send a notification and return when it has come back.

        Raises:
            NotHeard: it did not come back in time.
            TimeoutError: no other connection became free in time to send it.
        """
        self._proof, self._proved = f"{_PROOF}{secrets.token_hex(8)}", asyncio.Event()
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            await self._pool.execute("SELECT pg_notify($1, $2)", self._channel, self._proof)
        if not await _is_set_within(self._proved, _ANSWER_WITHIN_S):
            raise NotHeard

    def _on_lost(self, _connection: Any) -> None:  # noqa: ANN401 - the driver's, unused
        self.trusted = False
        self._lost.set()

    def _on_other(
        self,
        _connection: Any,  # noqa: ANN401 - the driver's, unused
        _pid: int,
        channel: str,
        payload: object,
    ) -> None:
        self._others[channel](str(payload))

    def _on_notification(
        self,
        _connection: Any,  # noqa: ANN401 - the driver's, unused
        _pid: int,
        _channel: str,
        payload: object,
    ) -> None:
        text = str(payload)
        if text == self._proof:
            self._proved.set()
        elif not text.startswith(_PROOF):  # Another host's proof is no change.
            self._on_change(text)


async def _is_set_within(event: asyncio.Event, limit_s: float) -> bool:
    # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together with the
    # awaited result.
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


__all__ = ["CHANNEL", "EVERYTHING", "NO_OTHERS", "ChangeListener"]
