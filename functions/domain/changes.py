"""Hearing at once what changed in the registry, so that a cache need not guess."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import asyncpg
import structlog

CHANNEL = "registry_changed"
EVERYTHING = "all"
_PROOF = "proof/"
_PROVE_EVERY_S = 5.0
_ANSWER_WITHIN_S = 5.0
_RETRY_AFTER_S = 1.0


class NotHeard(Exception):  # noqa: N818 - names what happened
    """A notification of one's own did not come back."""


class ChangeListener:
    """Listens on a connection of its own, which the pool must be able to spare beside another one.

    Whether it hears is proved again and again: a notification of its own, sent on another
    connection, must come back. Between it and the server may be a pooler that gives the connection
    to others, and then nothing else would tell.

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
        self._proof = ""
        self._proved = asyncio.Event()
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
            except Exception as failure:  # noqa: BLE001 - without this task nothing is heard again
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
                    connection.remove_listener(CHANNEL, self._on_notification), _ANSWER_WITHIN_S
                )

    async def _prove(self) -> None:
        """Return when a notification has come back.

        Raises:
            NotHeard: it has not, or the connection is lost.
            TimeoutError: no other connection became free in time to send it.
        """
        self._proof, self._proved = f"{_PROOF}{secrets.token_hex(8)}", asyncio.Event()
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            await self._pool.execute("SELECT pg_notify($1, $2)", CHANNEL, self._proof)
        if not await _is_set_within(self._proved, _ANSWER_WITHIN_S):
            raise NotHeard

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
        text = str(payload)
        if text == self._proof:
            self._proved.set()
        elif not text.startswith(_PROOF):  # That is another host's.
            self._on_change(text)


async def _is_set_within(event: asyncio.Event, limit_s: float) -> bool:
    # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together with what
    # it waits for.
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


__all__ = ["CHANNEL", "EVERYTHING", "ChangeListener"]
