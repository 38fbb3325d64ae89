"""Sends messages from quarantine through the functions that refused them once more.

A replay runs in small steps on the clock, at its own rate. A step claims messages in the database,
publishes their copies on the subjects on which they came, and notes how far it is. When its host
dies between, the step is made again: a copy under the same id, or the second one is a duplicate for
whoever takes it (`functions.domain.quarantine_replays`).
"""

from pathlib import Path
from typing import Any

from functions.domain.named_sql import read_queries
from functions.domain.quarantine_replays import copy_header
from runtime import Context, Publication, Unsendable

_QUERIES = read_queries(Path(__file__).with_name("replays.sql"))
EVERY_S = 2
"""Time between two steps, as the manifest has it."""
_REPLAYS = 10
_MAX_STEP = 1000
_MAX_STEP_BYTES = 8_000_000


async def run_quarantine_replays(ctx: Context[None]) -> None:
    """Make a step of every replay that is due. Several hosts may run it."""
    for row in await ctx.postgres.fetch(_QUERIES["begin"], _REPLAYS):
        await _step(ctx, row)


async def _step(ctx: Context[None], row: Any) -> None:  # noqa: ANN401 - a row
    replay_id = row["replay_id"]
    claimed = await ctx.postgres.fetch(
        _QUERIES["claim"],
        *(replay_id, row["quarantine_id"], row["tenant_id"], row["device_id"], row["reason"]),
        *(row["since"], row["until"], row["cursor"]),
        *(min(_MAX_STEP, row["rate_per_s"] * EVERY_S), _MAX_STEP_BYTES),
    )
    if not claimed:
        await ctx.postgres.execute(_QUERIES["end"], replay_id)
        ctx.log.info("A replay from quarantine has sent everything", replay_id=str(replay_id))
        return
    copies = {
        each["quarantine_id"]: Publication(
            each["subject"],
            each["payload"],
            f"quarantine-{each['quarantine_id']}-{replay_id}",
            copy_header(each["quarantine_id"], replay_id),
        )
        for each in sorted(claimed, key=lambda each: each["quarantine_id"])
    }
    unsendable = await _publish(ctx, copies)
    if unsendable:
        ctx.log.warning(
            "Messages in quarantine cannot be sent again: NATS accepts none of this form or size",
            replay_id=str(replay_id),
            messages=len(unsendable),
        )
        await ctx.postgres.execute(_QUERIES["give_back"], unsendable, replay_id)
    sent = len(copies) - len(unsendable)
    await ctx.postgres.execute(_QUERIES["note"], replay_id, max(copies), sent, len(unsendable))


async def _publish(ctx: Context[None], copies: dict[int, Publication]) -> list[int]:
    """Publish the copies; the messages that can never be sent."""
    try:
        await ctx.publish_many(list(copies.values()))
    except Unsendable:
        pass
    else:
        return []
    unsendable = []
    for quarantine_id, copy in copies.items():
        try:
            await ctx.publish_many([copy])
        except Unsendable:
            unsendable.append(quarantine_id)
    return unsendable


__all__ = ["run_quarantine_replays"]
