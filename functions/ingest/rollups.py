"""Computes the roll-ups of telemetry that are marked: minutes, then hours, then days.

Each step takes the due marks of one tenant and hour (or day), computes these buckets anew from what
is below them, and marks the bucket above, in one transaction. A step that fails, or whose host
dies, leaves its marks. A bucket is computed when its time is over, so that each row is read once,
and again when a row comes late.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("rollups.sql"))
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_SPANS = {"minute": _HOUR, "hour": _HOUR, "day": _DAY}
_ABOVE = {"minute": ("hour", _HOUR), "hour": ("day", _DAY)}
_DEVICES_AT_A_TIME = 200
# Rows of one minute are written within seconds of its end, unless there is a backlog.
_LATE = timedelta(seconds=10)
_AGAIN_AFTER = timedelta(minutes=10)
# Errors that the data of one tenant causes; any other ends the run, and the next one tries again.
_DATA_FAULTS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.QueryCanceledError,
)

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class RollupSettings(BaseModel):
    """Bounds of one run.

    Attributes:
        run_s: no step begins later than this after the run's beginning; the rest waits for the
            next run.
        statement_timeout_s: a step whose statement takes longer is put off for ten minutes, and
            logged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    statement_timeout_s: Annotated[int, Field(ge=1, le=600)] = 30


# The name under which the host looks for a function's settings.
Settings = RollupSettings


class Step(NamedTuple):
    """The work of one transaction: buckets of one level and tenant, within one hour or day."""

    level: str
    tenant_id: str
    from_at: datetime
    to_at: datetime


async def roll_up(ctx: Context[None]) -> None:
    """Compute what is marked and due, the newest first. Of several hosts one does it at a time."""
    settings: RollupSettings = ctx.settings
    clock = asyncio.get_running_loop().time
    end_s = clock() + settings.run_s
    while clock() < end_s:
        async with ctx.postgres.acquire() as connection:
            step = await _next(connection)
            if step is None:
                return
            try:
                if not await _take(connection, step, settings, end_s):
                    return
            except _DATA_FAULTS as fault:
                await _postpone(connection, step)
                # Not the text: PostgreSQL quotes the value that it refuses.
                ctx.log.error(  # noqa: TRY400
                    "Telemetry could not be rolled up; it is tried again in ten minutes",
                    tenant_id=step.tenant_id,
                    level=step.level,
                    from_at=step.from_at.isoformat(),
                    error_type=type(fault).__name__,
                )


async def _next(connection: Connection) -> Step | None:
    """The newest step that is due, as wide as one transaction may be."""
    row = await connection.fetchrow(_QUERIES["newest_due"], datetime.now(UTC) - _LATE)
    if row is None:
        return None
    level, from_at, to_at = row["level"], row["from_at"], row["to_at"]
    if to_at - from_at > _SPANS[level]:
        return Step(level, row["tenant_id"], from_at, to_at)
    begin = from_at.replace(minute=0, second=0, microsecond=0)
    return Step(level, row["tenant_id"], begin, begin + _SPANS[level])


async def _take(connection: Connection, step: Step, settings: RollupSettings, end_s: float) -> bool:
    """Do the step; False when another host is at work."""
    async with connection.transaction():
        if not await connection.fetchval(_QUERIES["lock"]):
            return False
        await connection.execute(_QUERIES["set_up"], str(settings.statement_timeout_s * 1000))
        if step.to_at - step.from_at > _SPANS[step.level]:
            await connection.execute(_QUERIES["split"], *step[1:])
        else:
            await _roll(connection, step, end_s)
    return True


async def _roll(connection: Connection, step: Step, end_s: float) -> None:
    claimed = await connection.fetchrow(_QUERIES["claim"], *step, datetime.now(UTC) - _LATE)
    # Another host may have been quicker: then nothing is marked any more.
    if claimed is None or claimed["from_at"] is None:
        return
    floor = claimed["rows_from"]
    if step.level != "day" and floor is not None and step.from_at < floor:
        # The rows are being removed for their age, and what they came to stays as it was.
        return
    devices, span = claimed["device_ids"], (claimed["from_at"], claimed["to_at"])
    clock = asyncio.get_running_loop().time
    done = 0
    while done < len(devices) and (done == 0 or clock() < end_s):
        some = devices[done : done + _DEVICES_AT_A_TIME]
        await connection.execute(_QUERIES[f"roll_{step.level}"], step.tenant_id, some, *span)
        done += len(some)
    if done < len(devices):
        await connection.execute(
            _QUERIES["mark"], step.level, step.tenant_id, devices[done:], *span
        )
    if done and step.level in _ABOVE:
        level, width = _ABOVE[step.level]
        begin = step.from_at.replace(minute=0)
        if width == _DAY:
            begin = begin.replace(hour=0)
        await connection.execute(
            _QUERIES["mark"], level, step.tenant_id, devices[:done], begin, begin + width
        )


async def _postpone(connection: Connection, step: Step) -> None:
    again_at = datetime.now(UTC) + _AGAIN_AFTER
    await connection.execute(_QUERIES["postpone"], *step, again_at)


__all__ = ["RollupSettings", "Settings", "roll_up"]
