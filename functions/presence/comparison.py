"""Compares the sessions that the database has with those that the servers have.

Events are heard by whoever listens at that moment. What was missed while no host listened, or while
a connection was lost, is found here: at every start, after every reconnect, and at intervals.
"""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from functions.presence.server_watch import ServerWatch
from functions.presence.servers import (
    ListedPart,
    ListingFailed,
    find_servers,
    list_connections,
)
from functions.presence.sessions import Session
from functions.presence.store import QUERIES, Apply, Changes, ended_sessions
from runtime import Context, SystemPort

if TYPE_CHECKING:
    import asyncpg

    Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

_OFTEN = timedelta(seconds=0.5)
# So much of a server's time may go into comparisons, one in this number.
_SHARE = 5


class Comparison:
    """Brings the database's sessions in line with those of the servers.

    Every host listens to events, and one at a time compares.

    Args:
        ctx: of the function, with PostgreSQL.
        system: the system account of the servers.
        servers: knows which of them this host hears.
        account: the account of the devices.
        every_s: seconds between two comparisons.
        apply: settles changes.
    """

    def __init__(
        self,
        ctx: Context[Any],
        system: SystemPort,
        servers: ServerWatch,
        *,
        account: str,
        every_s: float,
        apply: Apply,
    ) -> None:
        self._pool: Pool = ctx.postgres
        self._log = ctx.log
        self._system = system
        self._servers = servers
        self._account = account
        self._every = timedelta(seconds=every_s)
        self._took = timedelta(0)
        self._apply = apply
        self._since: datetime | None = None

    def want(self, since: datetime) -> None:
        """Ask for a comparison that begins after `since`, by the database's clock."""
        self._since = since

    async def run_once(self) -> None:
        """Compare if a comparison is wanted, and if no other host has made it or makes it."""
        if not self._servers.sees_all:
            # This host would call a part of the servers all of them.
            return
        now: datetime = await self._pool.fetchval(QUERIES["clock"])
        every = self._every if self._servers.tells_all else max(_OFTEN, self._took * _SHARE)
        since = self._since
        wanted_since = max(since or now - every, now - every)
        if await self._pool.fetchval(QUERIES["is_compared"], wanted_since):
            # Unless another one was asked for meanwhile.
            if self._since is since:
                self._since = None
            return
        began_at = await self._pool.fetchval(QUERIES["claim_comparison"], wanted_since)
        if began_at is None:
            return
        servers = await find_servers(self._system)
        begun_s = time.monotonic()
        compared = [await self._try(server_id, began_at) for server_id in sorted(servers)]
        if compared and all(compared):
            await self._pool.execute(QUERIES["end_comparison"], began_at)
            self._took = timedelta(seconds=time.monotonic() - begun_s)

    async def _try(self, server_id: str, began_at: datetime) -> bool:
        """Compare a server's sessions; whether it has listed them."""
        try:
            await self._compare(server_id, began_at)
        except ListingFailed as failure:
            self._log.warning(
                "The sessions of a server could not be compared; tried again",
                server_id=server_id,
                reason=str(failure),
            )
            return False
        return True

    async def _compare(self, server_id: str, began_at: datetime) -> None:
        opened = ended = 0
        async for part in list_connections(self._system, server_id, self._account):
            listed_at = part.listing.listed_at
            missing = await self._find_missing(part, began_at)
            unknown = await self._find_unknown(part.listing.sessions)
            await self._apply(Changes(opened=unknown, ended=ended_sessions(missing, listed_at)))
            opened, ended = opened + len(unknown), ended + len(missing)
        if self._servers.tells_all and (opened or ended):
            self._log.info(
                "Sessions of devices were compared with a server's: not all events were heard",
                server_id=server_id,
                opened=opened,
                ended=ended,
            )

    async def _find_missing(self, part: ListedPart, began_at: datetime) -> Sequence[Any]:
        """The sessions of the part's range that were noted before, and the server does not have."""
        listing = part.listing
        found: Sequence[Any] = await self._pool.fetch(
            QUERIES["find_missing"],
            *(listing.server_id, part.above, part.up_to),
            began_at,
            [session.connection_id for session in listing.sessions],
        )
        return found

    async def _find_unknown(self, sessions: Sequence[Session]) -> list[Session]:
        if not sessions:
            return []
        ids = [session.connection_id for session in sessions]
        rows = await self._pool.fetch(QUERIES["find_unknown"], sessions[0].server_id, ids)
        unknown = {row["connection_id"] for row in rows}
        return [session for session in sessions if session.connection_id in unknown]


__all__ = ["Comparison"]
