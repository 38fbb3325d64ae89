"""Notices that a nats-server is gone: it takes its sessions with it, and cannot say so.

A host that is cut off hears no server, or only those on its side of a broken network. So each host
notes in the database which servers it hears, and a server that any host hears is there.
"""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

import structlog

from functions.presence.servers import find_servers
from functions.presence.sessions import GLOBAL_ACCOUNT
from functions.presence.store import QUERIES, Apply, Changes, ended_sessions
from runtime import SystemPort

if TYPE_CHECKING:
    import asyncpg

    Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

_AT_A_TIME = 10_000
# Since this version servers tell of connections in their global account.
_TELLS_SINCE = (2, 12)
# A server that is silent for so many questions, one every two seconds, is gone.
_MISSES = 3
# What another host has heard in this time is there. Less than three questions take.
_RECENTLY = timedelta(seconds=5)
# Between two hosts' notes of the same round.
_SLACK = timedelta(seconds=1)


class ServerWatch:
    """Asks every two seconds which servers there are, and ends the sessions of those that are gone.

    Args:
        pool: to PostgreSQL.
        log: tells of servers that are gone.
        system: the system account of the servers.
        account: the account of the devices.
        apply: settles changes.

    Attributes:
        tells_all: every server tells of each session that begins or ends.
        sees_all: no other host hears a server that this one does not hear.
    """

    def __init__(
        self,
        pool: "Pool",
        log: structlog.stdlib.BoundLogger,
        system: SystemPort,
        *,
        account: str,
        apply: Apply,
    ) -> None:
        self.tells_all = True
        self.sees_all = True
        self._pool = pool
        self._log = log
        self._system = system
        self._account = account
        self._apply = apply
        self._reconnects = system.reconnects
        self._misses: dict[str, int] = {}
        self._heard_at: dict[str, datetime] = {}

    async def run_once(self) -> datetime | None:
        """Ask once.

        A round without any answer, or in which the connection was lost, says nothing about servers.

        Returns:
            A time since which sessions have to be compared, by the database's clock: a server whose
            sessions were ended for its silence answers again. None otherwise.
        """
        servers = await find_servers(self._system)
        if self._system.reconnects != self._reconnects:
            self._reconnects = self._system.reconnects
            self._misses.clear()
            return None
        if not servers:
            return None
        self.tells_all = self._account != GLOBAL_ACCOUNT or all(
            version >= _TELLS_SINCE for version in servers.values()
        )
        back = await self._pool.fetch(QUERIES["hear_servers"], sorted(servers))
        now: datetime = await self._pool.fetchval(QUERIES["clock"])
        await self._judge(frozenset(servers), now)
        return now if back else None

    async def _judge(self, heard: frozenset[str], now: datetime) -> None:
        noted = await self._pool.fetch(QUERIES["find_heard"], now - _RECENTLY)
        of_others = {
            row["server_id"]
            for row in noted
            if row["heard_at"] > self._heard_at.get(row["server_id"], now - _RECENTLY) + _SLACK
        } - heard
        self._heard_at = {
            server_id: at for server_id, at in self._heard_at.items() if at > now - _RECENTLY
        } | dict.fromkeys(heard, now)
        self.sees_all = not of_others
        known = {row["server_id"] for row in await self._pool.fetch(QUERIES["find_servers"])}
        silent = known - heard - {row["server_id"] for row in noted}
        self._misses = {
            server_id: self._misses.get(server_id, 0) + 1 for server_id in known - heard
        }
        for server_id in sorted(silent):
            if self._misses[server_id] >= _MISSES:
                await self._end_all(server_id)

    async def _end_all(self, server_id: str) -> None:
        await self._pool.execute(QUERIES["lose_server"], server_id)
        ended = 0
        while True:
            rows = await self._pool.fetch(QUERIES["find_sessions"], server_id, _AT_A_TIME)
            if not rows:
                break
            now: datetime = await self._pool.fetchval(QUERIES["clock"])
            await self._apply(Changes(ended=ended_sessions(rows, now, is_lost=True)))
            ended += len(rows)
        self._log.warning(
            "A NATS server is gone, and the sessions of devices with it",
            server_id=server_id,
            sessions=ended,
        )


__all__ = ["ServerWatch"]
