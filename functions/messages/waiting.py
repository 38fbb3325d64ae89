"""Bounds how many messages of one tenant wait to be sent."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from functions.domain.named_sql import read_queries

if TYPE_CHECKING:
    import asyncpg

    Pool = asyncpg.Pool[asyncpg.Record]

_QUERIES = read_queries(Path(__file__).with_name("settling.sql"))
_FRESH_S = 1.0
_MAX_TENANTS = 10_000


@dataclass(slots=True)
class _Count:
    waiting: int
    at_s: float


class WaitingBound:
    """Counts each tenant's waiting messages, at most once a second, and adds what came since.

    Several processes count apart, so together they may exceed the bound by what each accepts within
    a second.

    Args:
        pool: counts.
        most: the bound.
    """

    def __init__(self, pool: "Pool", most: int) -> None:
        self._pool = pool
        self._most = most
        self._counts: dict[str, _Count] = {}
        self._counting: dict[str, asyncio.Task[_Count]] = {}

    async def take(self, tenant_id: str) -> bool:
        """Whether the tenant may have one more waiting message; if so, it is counted."""
        now_s = asyncio.get_running_loop().time()
        known = self._counts.get(tenant_id)
        if known is None or now_s - known.at_s >= _FRESH_S:
            known = await self._count(tenant_id)
        if known.waiting >= self._most:
            return False
        known.waiting += 1
        return True

    async def _count(self, tenant_id: str) -> _Count:
        """The count in the database; concurrent callers share one query and its result."""
        counting = self._counting.get(tenant_id)
        if counting is None:
            counting = asyncio.create_task(self._ask(tenant_id))
            self._counting[tenant_id] = counting
            counting.add_done_callback(lambda _: self._counting.pop(tenant_id, None))
        # Shielded: a caller that is cancelled must not cancel the count of the others.
        return await asyncio.shield(counting)

    async def _ask(self, tenant_id: str) -> _Count:
        now_s = asyncio.get_running_loop().time()
        waiting = await self._pool.fetchval(_QUERIES["count_waiting"], tenant_id, self._most)
        return self._keep(tenant_id, _Count(waiting, now_s))

    def _keep(self, tenant_id: str, count: _Count) -> _Count:
        self._counts.pop(tenant_id, None)
        if len(self._counts) >= _MAX_TENANTS:
            del self._counts[next(iter(self._counts))]
        self._counts[tenant_id] = count
        return count


__all__ = ["WaitingBound"]
