"""Keeps presence up to date: takes events as they come, and looks at silence every second."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg

from functions.presence.event_buffer import EventBuffer
from functions.presence.horizon import find_horizon
from functions.presence.store import QUERIES, Changes, settle
from runtime import Context, NoAnswer, Unavailable

if TYPE_CHECKING:
    Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

T = TypeVar("T")

OUTAGES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, Unavailable)
"""What ends with an outage of PostgreSQL or NATS; whoever meets one tries again."""

_AT_A_TIME = 1000
_FULL_PART = f"DELETE {_AT_A_TIME}"
# A row has at most the devices of a batch.
_ACTIVITY_ROWS, _ACTIVITY_DEVICES = 50, 2000
_AGAIN_S = 1.0
# One of them computes in PostgreSQL while this process prepares the other.
_TRANSACTIONS = 2


class PresenceWatch:
    """Applies events, activity and silence to the devices' rows. Several hosts may do so at once.

    Args:
        ctx: of the function, with PostgreSQL.
        timeout_s: after which silence a device without a session is offline.
    """

    def __init__(self, ctx: Context[Any], timeout_s: int) -> None:
        self._ctx = ctx
        self._pool: Pool = ctx.postgres
        self._timeout_s = timeout_s
        self._is_behind = False
        self._places = asyncio.Semaphore(_TRANSACTIONS)

    async def apply(self, changes: Changes) -> None:
        """Settle changes of sessions, some thousand in a transaction, several of these at once."""
        count = len(changes.opened) + len(changes.ended)
        parts = changes.split(-(-count // _AT_A_TIME))
        await _all_of([self._apply_part(part) for part in parts])

    async def _apply_part(self, changes: Changes) -> None:
        async with self._places, self._pool.acquire() as connection, connection.transaction():
            now: datetime = await connection.fetchval(QUERIES["clock"])
            await settle(connection, changes, timeout_s=self._timeout_s, horizon=now)

    async def apply_events(self, events: EventBuffer) -> None:
        """Apply events as they arrive, for ever."""
        while True:
            count = await events.wait()
            for changes in events.first(count):
                await self.apply(changes)
            events.drop(count)

    async def look(self) -> None:
        """Take what was noted of devices, and decide about those that are silent too long."""
        await self._pool.execute(QUERIES["renew_watch"], self._timeout_s)
        while any(await self._together(self._take_activity)):
            pass
        await self._take_all_due()
        while await self._pool.execute(QUERIES["forget_sessions"], _AT_A_TIME) == _FULL_PART:
            pass

    async def _take_activity(self) -> bool:
        """Apply some of the noted activity; whether there may be more."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(
                QUERIES["take_activity"], _ACTIVITY_ROWS, _ACTIVITY_DEVICES
            )
            if not rows:
                return False
            columns = [list(column) for column in zip(*rows, strict=True)]
            others = await connection.fetch(QUERIES["touch"], *columns)
            changes = Changes()
            for row in others:
                device = (row["tenant_id"], row["device_id"])
                changes.seen[device] = row["at"]
                if row["sessionless_at"] is not None:
                    changes.sessionless[device] = row["sessionless_at"]
            now: datetime = await connection.fetchval(QUERIES["clock"])
            await settle(connection, changes, timeout_s=self._timeout_s, horizon=now)
        return True

    async def _together(self, take: Callable[[], Coroutine[Any, Any, bool]]) -> list[bool]:
        return await _all_of([take() for _ in range(_TRANSACTIONS)])

    async def _take_all_due(self) -> None:
        """Decide about the devices that are due."""
        now: datetime = await self._pool.fetchval(QUERIES["clock"])
        if not await self._pool.fetchval(QUERIES["is_due"], now):
            return
        horizon = await find_horizon(self._ctx, now)
        self._tell(now, horizon)
        while any(await self._together(partial(self._take_due, now, horizon))):
            pass

    async def _take_due(self, now: datetime, horizon: datetime) -> bool:
        """Decide about some of them; whether there may be more."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(QUERIES["take_due"], _AT_A_TIME, horizon)
            due = Changes(due=[(row["tenant_id"], row["device_id"]) for row in rows])
            await settle(connection, due, timeout_s=self._timeout_s, horizon=horizon, now=now)
        return len(due.due) == _AT_A_TIME

    def _tell(self, now: datetime, horizon: datetime) -> None:
        is_behind = (now - horizon).total_seconds() > self._timeout_s / 10 + _AGAIN_S
        if is_behind and not self._is_behind:
            self._ctx.log.warning(
                "Devices may seem silent: ingest is behind, so none is called offline for silence",
                behind_s=round((now - horizon).total_seconds()),
            )
        self._is_behind = is_behind


async def _all_of(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return; with the first failure the others end."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def repeat(
    ctx: Context[Any], what: str, every_s: float, work: Callable[[], Awaitable[None]]
) -> None:
    """Call `work` again and again until the function stops; an outage is logged, once."""
    said = False
    while not ctx.stopping.is_set():
        try:
            await work()
        except asyncpg.DeadlockDetectedError:
            # Another host wrote first rows of the same devices at the same moment.
            continue
        except (*OUTAGES, NoAnswer) as failure:
            if not said:
                said = True
                ctx.log.warning(
                    "Presence is not up to date; tried again",
                    what=what,
                    error_type=type(failure).__name__,
                )
        else:
            if said:
                ctx.log.info("Presence is up to date again", what=what)
            said = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_S if said else every_s):
                await ctx.stopping.wait()


__all__ = ["OUTAGES", "PresenceWatch", "repeat"]
