"""Makes the telemetry table's daily partitions ahead of time, and drops old ones."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from runtime import Context


class PartitionSettings(BaseModel):
    """Days to make ahead, and days to keep; `keep_days` 0 keeps everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days_ahead: Annotated[int, Field(ge=1, le=366)] = 7
    keep_days: Annotated[int, Field(ge=0, le=36_500)] = 0


# The name under which the host looks for a function's settings.
Settings = PartitionSettings


async def make_partitions(ctx: Context[None]) -> None:
    """Make missing partitions, drop those older than `keep_days`. Several hosts may run it."""
    settings: PartitionSettings = ctx.settings
    made = await ctx.postgres.fetchval(
        "SELECT ensure_telemetry_partitions($1)", settings.days_ahead
    )
    dropped = 0
    if settings.keep_days:
        dropped = await ctx.postgres.fetchval(
            "SELECT drop_old_telemetry_partitions($1)", settings.keep_days
        )
    if made or dropped:
        ctx.log.info("The telemetry partitions changed", made=made, dropped=dropped)


__all__ = ["PartitionSettings", "Settings", "make_partitions"]
