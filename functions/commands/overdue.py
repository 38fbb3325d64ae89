"""Ends commands that were not sent or not answered in time."""

from collections import Counter
from pathlib import Path

from functions.domain.named_sql import read_queries
from runtime import Context

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))
_AT_ONCE = 1000


async def end_overdue(ctx: Context) -> None:
    """Expire commands that were not sent in time; time out those without an answer in time."""
    ended: Counter[str] = Counter()
    while True:
        rows = await ctx.postgres.fetch(_QUERIES["end_overdue"], _AT_ONCE)
        ended.update(str(row["status"]) for row in rows)
        if len(rows) < _AT_ONCE:
            break
    if ended:
        ctx.log.info("commands have ended", expired=ended["expired"], timed_out=ended["timed_out"])
