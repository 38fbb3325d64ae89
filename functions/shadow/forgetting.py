"""Removes shadows with a name some days after their deletion."""

from datetime import timedelta

from functions.shadow.store import forget_deleted
from runtime import Context

# As long as the stream keeps a message: an update that is older cannot arrive any more.
KEPT = timedelta(days=7)
_AT_ONCE = 1000


async def forget_shadows(ctx: Context) -> None:
    """Remove shadows with a name that were deleted long ago; one that is made again begins anew.

    The shadow without a name keeps its version, since it needs one row for each device at most.
    """
    forgotten = 0
    while True:
        removed = await forget_deleted(ctx.postgres, KEPT, _AT_ONCE)
        forgotten += removed
        if removed < _AT_ONCE:
            break
    if forgotten:
        ctx.log.info("deleted shadows are forgotten", shadows=forgotten)
