"""Sends commands again that are not answered, and ends those whose time is up."""

from collections import Counter

from functions.commands.store import end_overdue, release_all, send_due
from runtime import Context

_AT_ONCE = 1000
_ROUNDS = 20


async def tend_commands(ctx: Context) -> None:
    """Expire and time out, then send what is due. Several hosts may run it: each takes others."""
    ended: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        statuses = await end_overdue(ctx.postgres, _AT_ONCE)
        ended.update(statuses)
        if len(statuses) < _AT_ONCE:
            break
    if ended:
        ctx.log.info("commands have ended", expired=ended["expired"], timed_out=ended["timed_out"])
    await release_all(ctx.postgres)
    for _ in range(_ROUNDS):
        if await send_due(ctx.postgres, _AT_ONCE) < _AT_ONCE:
            break


__all__ = ["tend_commands"]
