"""Puts into the queues and on the status subjects what stands in the database alone, and forgets.

A message is accepted when its row is committed. What NATS does not have, because it was away, the
host died, or a full stream has deleted it unread, is published here, under the same message id.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.named_sql import read_queries
from functions.messages.announcing import enqueue, status_publication
from functions.messages.contents import QUEUES, Kind, OutMessage, read_content
from functions.messages.store import (
    PUBLISHED_CHECK_S,
    UNPUBLISHED_CHECK_S,
    Due,
    MessageStore,
    Transition,
)
from runtime import Context, RequestFailed, Unavailable

_QUERIES = read_queries(Path(__file__).with_name("settling.sql"))
_AT_A_TIME = 500
_ROUNDS = 20
_ANNOUNCE_AFTER_S = 5.0
_FULL = 0.8


class ReconcileSettings(BaseModel):
    """Settings of the check of messages against their queues.

    Attributes:
        keep_days: how long a message is kept after its last transition, and so how long its
            idempotency key is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_days: Annotated[int, Field(ge=8, le=3650)] = 30


# The name under which the host looks for a function's settings.
Settings = ReconcileSettings


@dataclass(frozen=True, slots=True)
class QueueState:
    """What JetStream says of a queue and its consumer.

    Attributes:
        first_sequence: of the oldest message that the stream still has.
        settled_to: all messages up to this one are settled.
        pending: messages that were not delivered yet.
        fill: share of the stream's room that is taken, by bytes or by messages.
    """

    first_sequence: int
    settled_to: int
    pending: int
    fill: float

    def has(self, sequence: int | None) -> bool:
        """Whether the message of this sequence will still be delivered."""
        return (
            sequence is not None and sequence >= self.first_sequence and sequence > self.settled_to
        )


async def start(ctx: Context[MessageStore]) -> MessageStore:
    """Open the store."""
    return MessageStore(ctx.postgres)


async def stop(ctx: Context[MessageStore]) -> None:
    """Wait for what was begun."""
    await ctx.state.close()


async def reconcile_messages(ctx: Context[MessageStore]) -> None:
    """Publish what is not published; warn of queues that are nearly full of unread messages."""
    await _announce_all(ctx)
    for kind in QUEUES:
        state = await find_state(ctx, kind)
        if state is None:
            continue
        if state.fill >= _FULL and state.pending:
            ctx.log.error(
                "A queue is nearly full of unread messages: the oldest are deleted when it is full",
                queue=QUEUES[kind].stream,
                unread=state.pending,
                full_percent=round(state.fill * 100),
            )
        await _enqueue_all(ctx, kind, state)


async def forget_messages(ctx: Context[MessageStore]) -> None:
    """Remove messages that have not changed for `keep_days`."""
    age = timedelta(days=ctx.settings.keep_days)
    removed = _AT_A_TIME
    while removed == _AT_A_TIME:
        status = await ctx.postgres.execute(_QUERIES["forget_old"], age, _AT_A_TIME)
        removed = int(status.rpartition(" ")[2])


async def find_state(ctx: Context[Any], kind: Kind) -> QueueState | None:
    """What JetStream says; None when it does not answer, or has no such stream or consumer."""
    queue = QUEUES[kind]
    stream = await _ask(ctx, f"$JS.API.STREAM.INFO.{queue.stream}")
    consumer = await _ask(ctx, f"$JS.API.CONSUMER.INFO.{queue.stream}.{queue.durable}")
    if stream is None:
        return None
    state, limits = stream["state"], stream["config"]
    fills = [
        state[have] / limits[most]
        for have, most in (("messages", "max_msgs"), ("bytes", "max_bytes"))
        if limits.get(most, -1) > 0
    ]
    # Without its consumer nothing is settled, and the stream keeps what it has.
    floor = consumer["ack_floor"]["stream_seq"] if consumer else 0
    pending = consumer["num_pending"] if consumer else state["messages"]
    return QueueState(state["first_seq"], floor, pending, max(fills, default=0.0))


async def _ask(ctx: Context[Any], subject: str) -> dict[str, Any] | None:
    try:
        reply = await ctx.request(subject, b"")
        answer = orjson.loads(reply.data)
    except (Unavailable, RequestFailed, orjson.JSONDecodeError):
        return None
    return answer if isinstance(answer, dict) and "error" not in answer else None


async def _announce_all(ctx: Context[MessageStore]) -> None:
    for _ in range(_ROUNDS):
        rows = await ctx.postgres.fetch(_QUERIES["unannounced"], _ANNOUNCE_AFTER_S, _AT_A_TIME)
        transitions = [Transition(*row) for row in rows]
        # One that NATS does not take raises, and the next tick tries again.
        await ctx.publish_many([status_publication(each) for each in transitions])
        await asyncio.gather(*(ctx.state.mark_announced(each) for each in transitions))
        if len(rows) < _AT_A_TIME:
            return


async def _enqueue_all(ctx: Context[MessageStore], kind: Kind, state: QueueState) -> None:
    for _ in range(_ROUNDS):
        due = await ctx.state.due(kind, ["queued"], _AT_A_TIME)
        for each in due:
            if state.has(each.stream_sequence):
                await ctx.state.look_again(each, PUBLISHED_CHECK_S)
                continue
            await ctx.state.look_again(each, UNPUBLISHED_CHECK_S)
            message = _read(ctx, each)
            if message is not None:
                await enqueue(ctx, ctx.state, message, _as_transition(each))
        if len(due) < _AT_A_TIME:
            return


def _read(ctx: Context[Any], due: Due) -> OutMessage | None:
    """The message; None for a row that cannot be read, which must not hold up the others."""
    try:
        return OutMessage(due.tenant_id, due.message_id, read_content(due.kind, due.content))
    except ValueError as failure:
        # Without a traceback: it would repeat the same place in the code for each such row.
        ctx.log.error(  # noqa: TRY400
            "A message cannot be read from its row, and waits for a person to correct it",
            message_id=due.message_id,
            tenant_id=due.tenant_id,
            error_type=type(failure).__name__,
        )
        return None


def _as_transition(due: Due) -> Transition:
    return Transition(
        due.tenant_id,
        due.message_id,
        due.kind,
        due.status,
        due.number,
        due.attempts,
        due.free_attempts,
        due.provider,
        due.provider_id,
        None,
        due.created_at,
        due.updated_at,
    )


__all__ = ["ReconcileSettings", "forget_messages", "reconcile_messages", "start", "stop"]
