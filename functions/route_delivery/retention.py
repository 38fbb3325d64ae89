"""Removes old entries from the log of deliveries."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))
_AT_A_TIME = 5_000


class RetentionSettings(BaseModel):
    """Settings of the delivery log's retention.

    Attributes:
        keep_days: how long a job is kept after its last attempt. A repeat of the job that comes
            later is delivered again, so the least value is above the maximum age of a job in its
            stream.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=8, le=3650)] = 30


# The name under which the host looks for a function's settings.
Settings = RetentionSettings


async def forget_old_deliveries(ctx: Context) -> None:
    """Remove old jobs with their attempts, old replays, and endpoints without routes."""
    age = timedelta(days=ctx.settings.keep_days)
    removed = _AT_A_TIME
    while removed == _AT_A_TIME:
        status = await ctx.postgres.execute(_QUERIES["forget_old"], age, _AT_A_TIME)
        removed = int(status.rpartition(" ")[2])
    await ctx.postgres.execute(_QUERIES["forget_replays"], age)
    await ctx.postgres.execute(_QUERIES["forget_endpoints"])
