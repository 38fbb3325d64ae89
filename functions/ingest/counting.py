"""Adds up the counters of messages, which every transaction writes as rows of its own."""

from functions.domain.message_counts import fold_counts
from runtime import Context


async def fold_message_counts(ctx: Context[None]) -> None:
    """Add up the changes of the counters. Several hosts may run it."""
    await fold_counts(ctx.postgres)


__all__ = ["fold_message_counts"]
