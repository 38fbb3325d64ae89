"""Makes the telemetry table's daily partitions ahead of time, and drops old ones."""

from typing import Annotated, Any

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from runtime import Context


class PartitionSettings(BaseModel):
    """Days to make ahead, and days to keep; `keep_days` 0 keeps everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days_ahead: Annotated[int, Field(ge=1, le=366)] = 7
    keep_days: Annotated[int, Field(ge=0, le=36_500)] = 0


# The name under which the host looks for a function's settings.
Settings = PartitionSettings


_LOCK_WAIT = "SET LOCAL lock_timeout = '2s'"
"""Every later statement on the table waits behind one that waits for its lock."""


async def make_partitions(ctx: Context[None]) -> None:
    """Make missing partitions, drop those older than `keep_days`. Several hosts may run it."""
    settings: PartitionSettings = ctx.settings
    made = await ensure_partitions(ctx, settings.days_ahead)
    dropped = 0
    if settings.keep_days:
        dropped = await _change(ctx, "drop_old_telemetry_partitions", settings.keep_days)
    if made or dropped:
        ctx.log.info("The telemetry partitions changed", made=made, dropped=dropped)


async def ensure_partitions(ctx: Context[Any], days_ahead: int) -> int:
    """Make the missing partitions of the next days; the number of those that were made."""
    return await _change(ctx, "ensure_telemetry_partitions", days_ahead)


async def _change(ctx: Context[Any], function: str, days: int) -> int:
    """Call the database's function; whoever holds the table is left alone until the next run."""
    try:
        async with ctx.postgres.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK_WAIT)
            changed: int = await connection.fetchval(f"SELECT {function}($1)", days)
    except asyncpg.LockNotAvailableError:
        ctx.log.warning(
            "The telemetry partitions are in use; the next run tries again", function=function
        )
        return 0
    return changed


__all__ = ["PartitionSettings", "Settings", "ensure_partitions", "make_partitions"]
