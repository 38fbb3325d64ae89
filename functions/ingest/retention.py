"""Bounds what quarantine keeps: by age, and by messages and bytes of a tenant."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from functions.domain.rate_sharing import forget_uses
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("retention.sql"))
_AT_A_TIME = 1000
# Places of messages that were counted and not kept: a redelivery comes within minutes.
_UNKEPT_AGE = timedelta(days=1)
_MAX_UNKEPT = 200_000

Count = Annotated[int, Field(ge=0, le=10**9)]
Bytes = Annotated[int, Field(ge=0, le=10**15)]


class RefusedSettings(BaseModel):
    """How long and how much quarantine keeps.

    Beyond the room of its tenant a refused message is counted and not kept, so the oldest ones
    stay, which show how a fault began. Less room than before removes nothing.

    Attributes:
        keep_days: age up to which a refused message is kept.
        unknown_keep_hours: the same for messages of tenants that do not exist.
        counters_keep_days: age up to which the numbers of each minute are kept.
        tenant_messages, tenant_bytes: the room of a tenant.
        unknown_messages, unknown_bytes: the room of all tenants that do not exist, together.
        unknown_message_bytes: the largest message of them that is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=1, le=3650)] = 30
    unknown_keep_hours: Annotated[int, Field(ge=1, le=24 * 365)] = 24
    counters_keep_days: Annotated[int, Field(ge=1, le=3650)] = 7
    tenant_messages: Count = 50_000
    tenant_bytes: Bytes = 64_000_000
    unknown_messages: Count = 100
    unknown_bytes: Bytes = 1_000_000
    unknown_message_bytes: Bytes = 16_384


# The name under which the host looks for a function's settings.
Settings = RefusedSettings


async def forget_refused(ctx: Context[None]) -> None:
    """Remove old refused messages, counters and rates, and set the room of tenants.

    Several hosts may run it.
    """
    settings: RefusedSettings = ctx.settings
    await ctx.postgres.execute(
        _QUERIES["set_limits"],
        *(settings.tenant_messages, settings.tenant_bytes),
        *(settings.unknown_messages, settings.unknown_bytes, settings.unknown_message_bytes),
    )
    events = await _forget(ctx, "forget_unknown", timedelta(hours=settings.unknown_keep_hours))
    events += await _forget(ctx, "forget_events", timedelta(days=settings.keep_days))
    surplus: timedelta | None = await ctx.postgres.fetchval(
        _QUERIES["find_surplus_age"], _MAX_UNKEPT
    )
    await _forget(ctx, "forget_unkept", min(_UNKEPT_AGE, surplus or _UNKEPT_AGE))
    await _forget(ctx, "forget_replays", timedelta(days=settings.keep_days))
    await _forget(ctx, "forget_minutes", timedelta(days=settings.counters_keep_days))
    await forget_uses(ctx.postgres)
    if events:
        ctx.log.info("Old refused messages are removed", messages=events)


async def _forget(ctx: Context[None], query: str, age: timedelta) -> int:
    """Remove what is older, a part at a time; how much it was."""
    removed, part = 0, _AT_A_TIME
    while part == _AT_A_TIME:
        try:
            async with ctx.postgres.acquire() as connection, connection.transaction():
                await connection.execute(_QUERIES["wait_briefly"])
                status = await connection.execute(_QUERIES[query], age, _AT_A_TIME)
        except asyncpg.LockNotAvailableError:
            ctx.log.warning("Old refused messages are locked; the next run removes them")
            return removed
        part = int(status.rpartition(" ")[2])
        removed += part
    return removed


__all__ = ["RefusedSettings", "Settings", "forget_refused"]
