"""Removes telemetry that is older than its tenant keeps it.

Days go as a whole, at midnight UTC. The floor of a tenant is raised first, and only when the days
below it are rolled up; from then on nothing computes their roll-ups again. Then rows and roll-ups
below it are removed, some at a time, so that no transaction is long.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("telemetry_retention.sql"))
_AT_A_TIME = 5_000
# Rows below the floor come as late as streams and quarantine keep messages.
_LATEST = timedelta(days=60)


class RetentionSettings(BaseModel):
    """Settings of the retention.

    Attributes:
        keep_days: days after which the installation drops the partitions of rows; 0 for never.
            It bounds what a tenant may keep, and the roll-ups by the minute.
        run_s: nothing is begun later than this after the run's beginning; the next run goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=0, le=36_500)] = 0
    run_s: Annotated[float, Field(gt=0, le=3000)] = 120.0


# The name under which the host looks for a function's settings.
Settings = RetentionSettings


async def expire_telemetry(ctx: Context[None]) -> None:
    """Remove what is too old. Several hosts may run it."""
    settings: RetentionSettings = ctx.settings
    clock = asyncio.get_running_loop().time
    end_s = clock() + settings.run_s
    removed = 0
    for tenant in await ctx.postgres.fetch(_QUERIES["tenants"], settings.keep_days):
        expiry = _Expiry(ctx, tenant["tenant_id"], lambda: clock() < end_s)
        if tenant["rows_from"] is not None:
            await expiry.remove_rows(tenant["rows_from"])
        if tenant["rollups_from"] is not None:
            await expiry.remove_rollups(tenant["rollups_from"])
        removed += expiry.removed
        if clock() >= end_s:
            ctx.log.info("Removing old telemetry takes longer; the next run goes on")
            break
    if removed:
        ctx.log.info("Telemetry was removed for its age", removed=removed)


class _Expiry:
    """Removes one tenant's old telemetry, and counts it."""

    def __init__(self, ctx: Context[None], tenant_id: str, has_time: Callable[[], bool]) -> None:
        self._ctx = ctx
        self._tenant_id = tenant_id
        self._has_time = has_time
        self.removed = 0

    async def remove_rows(self, before: datetime) -> None:
        """Raise the floor to `before`, and remove rows and minutes below the floor."""
        pool = self._ctx.postgres
        if not await pool.fetchval(_QUERIES["raise_floor"], self._tenant_id, before):
            self._ctx.log.warning(
                "A tenant's telemetry is kept longer, since it is not rolled up yet",
                tenant_id=self._tenant_id,
            )
        floor = await pool.fetchrow(_QUERIES["floor"], self._tenant_id)
        if floor is None:
            return
        rows_from, removed_before = floor["rows_from"], floor["removed_before"]
        since = None if removed_before is None else removed_before - _LATEST

        async def remove_rows(at_most: int) -> int:
            count: int = await pool.fetchval(
                _QUERIES["remove_rows"], self._tenant_id, since, rows_from, at_most
            )
            return count

        # Of minutes below the floor none is made again; of rows some may come late.
        if not await self._repeat(remove_rows) or removed_before == rows_from:
            return
        if await self._remove("minutes", rows_from):
            await pool.execute(_QUERIES["note_removed"], self._tenant_id, rows_from)

    async def remove_rollups(self, before: datetime) -> None:
        """Remove hours and days."""
        if await self._remove("hours", before):
            await self._remove("days", before)

    async def _remove(self, level: str, before: datetime) -> bool:
        async def remove(at_most: int) -> int:
            status = await self._ctx.postgres.execute(
                _QUERIES[f"remove_{level}"], self._tenant_id, before, at_most
            )
            return int(status.rpartition(" ")[2])

        return await self._repeat(remove)

    async def _repeat(self, remove: Callable[[int], Awaitable[int]]) -> bool:
        """Remove until nothing is left; False when time is up."""
        while self._has_time():
            count = await remove(_AT_A_TIME)
            self.removed += count
            if count < _AT_A_TIME:
                return True
        return False


__all__ = ["RetentionSettings", "Settings", "expire_telemetry"]
