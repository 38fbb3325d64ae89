"""Removes ended commands with their answers: by age, and by number and bytes of a tenant."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("retention.sql"))
_AT_A_TIME = 1000


class CommandRetention(BaseModel):
    """How long and how many commands are kept after their end.

    A command that has not ended is never removed. A command that was removed can be created again
    under its id, and a later answer to it is refused as `UNKNOWN_COMMAND`.

    Attributes:
        keep_days: for how long after its end.
        tenant_commands, tenant_bytes: how much of a tenant; beyond it the oldest are removed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=1, le=3650)] = 30
    tenant_commands: Annotated[int, Field(ge=0, le=10**9)] = 100_000
    tenant_bytes: Annotated[int, Field(ge=0, le=10**15)] = 256_000_000


# The name under which the host looks for a function's settings.
Settings = CommandRetention


async def forget_commands(ctx: Context[None]) -> None:
    """Remove ended commands that are too old, or too many of a tenant. Several hosts may run it."""
    settings: CommandRetention = ctx.settings
    bounds = (settings.tenant_commands, settings.tenant_bytes)
    old = await _forget(ctx, "forget_old", timedelta(days=settings.keep_days))
    large = await ctx.postgres.fetch(_QUERIES["find_large"], *bounds)
    surplus = 0
    for row in large:
        surplus += await _forget(ctx, "forget_surplus", row["tenant_id"], *bounds)
    if old or surplus:
        ctx.log.info("Ended commands are removed", old=old, surplus=surplus)


async def _forget(ctx: Context[None], query: str, *arguments: object) -> int:
    """Remove a part at a time; how many it was."""
    removed, part = 0, _AT_A_TIME
    while part == _AT_A_TIME:
        try:
            async with ctx.postgres.acquire() as connection, connection.transaction():
                await connection.execute(_QUERIES["wait_briefly"])
                status = await connection.execute(_QUERIES[query], *arguments, _AT_A_TIME)
        except asyncpg.LockNotAvailableError:
            ctx.log.warning("Ended commands are locked; the next run removes them")
            return removed
        part = int(status.rpartition(" ")[2])
        removed += part
    return removed


__all__ = ["CommandRetention", "Settings", "forget_commands"]
