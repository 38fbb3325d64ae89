"""Endpoints that have refused messages sent once more; `run_quarantine_replays` sends them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import BaseModel, Field

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_time, as_uuid, cut, read_cursor
from functions.domain.values import ShortText, Time
from functions.management.quarantine import QuarantineId, Reason
from functions.management.requests import ListRequest, Request
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("quarantine_replays.sql"))
MAX_RUNNING = 10

Rate = Annotated[int, Field(ge=1, le=500)]


class CreateQuarantineReplay(Request):
    """A wish to send messages from quarantine again: all that fit what is given.

    A `replay_id` makes the request repeatable: the same one twice is one replay.
    """

    tenant_id: ShortText | None = None
    device_id: ShortText | None = None
    reason: Reason | None = None
    since: Time | None = None
    until: Time | None = None
    rate_per_s: Rate = 50
    replay_id: UUID | None = None


class ReplayQuarantined(Request):
    """A wish to send one message from quarantine again."""

    quarantine_id: QuarantineId
    replay_id: UUID | None = None


class QuarantineReplayRequest(Request):
    """A request about one replay."""

    replay_id: UUID


class ListQuarantineReplays(ListRequest):
    """A request for replays from quarantine."""


class QuarantineReplay(BaseModel):
    """Messages from quarantine that are sent again.

    Attributes:
        found: messages when the replay was asked for, at most 100,000.
        sent: copies that were sent.
        unsendable: messages that NATS accepts no copy of.
        accepted: messages whose copy was accepted, and that quarantine still shows.
        refused: messages that were refused again, or given back by a cancellation.
        under_way: messages whose copy was not judged yet.
        status: `running`, `cancelled` or `done`: everything is sent.
    """

    replay_id: UUID
    quarantine_id: int | None
    tenant_id: str | None
    device_id: str | None
    reason: str | None
    since: datetime | None
    until: datetime
    rate_per_s: int
    status: Literal["running", "cancelled", "done"]
    found: int
    sent: int
    unsendable: int
    accepted: int
    refused: int
    under_way: int
    created_at: datetime
    finished_at: datetime | None


async def create_quarantine_replay(
    event: Event[CreateQuarantineReplay], ctx: Context
) -> QuarantineReplay:
    """Send refused messages through the same functions once more, at a rate."""
    wanted = event.data
    now = datetime.now(UTC)
    if wanted.since is not None and wanted.until is not None and wanted.until <= wanted.since:
        raise Reject("RANGE_INVALID", "`until` must be later than `since`.", status=422)
    # What is refused again is not part of the replay a second time.
    until = min(wanted.until or now, now)
    chosen = (None, wanted.tenant_id, wanted.device_id, wanted.reason, wanted.since)
    return await _create(ctx, wanted.replay_id or uuid4(), chosen, until, wanted.rate_per_s)


async def replay_quarantined(event: Event[ReplayQuarantined], ctx: Context) -> QuarantineReplay:
    """Send one refused message through the same function once more."""
    wanted = event.data
    chosen = (wanted.quarantine_id, None, None, None, None)
    return await _create(ctx, wanted.replay_id or uuid4(), chosen, datetime.now(UTC), 1)


async def get_quarantine_replay(
    event: Event[QuarantineReplayRequest], ctx: Context
) -> QuarantineReplay:
    """One replay, and what became of its messages."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.replay_id)
    if row is None:
        raise Reject("REPLAY_NOT_FOUND", "There is no such replay.", status=404)
    return _replay(row)


async def list_quarantine_replays(
    event: Event[ListQuarantineReplays], ctx: Context
) -> Page[QuarantineReplay]:
    """Replays from quarantine, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page"], *read_cursor(query.cursor, as_time, as_uuid), query.limit + 1
    )
    items = [_replay(row) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.replay_id))


async def cancel_quarantine_replay(
    event: Event[QuarantineReplayRequest], ctx: Context
) -> QuarantineReplay:
    """End a replay: what was not accepted yet stays in quarantine. One that has ended stays so."""
    async with ctx.postgres.acquire() as connection, connection.transaction():
        replay_id = event.data.replay_id
        if await connection.fetchval(_QUERIES["cancel"], replay_id) is not None:
            await connection.execute(_QUERIES["give_back"], replay_id)
    return await get_quarantine_replay(event, ctx)


async def _create(
    ctx: Context, replay_id: UUID, chosen: tuple[Any, ...], until: datetime, rate_per_s: int
) -> QuarantineReplay:
    async with ctx.postgres.acquire() as connection, connection.transaction():
        # Two requests at the same time are counted one after the other.
        await connection.execute(_QUERIES["lock"])
        if (known := await connection.fetchrow(_QUERIES["find"], replay_id)) is not None:
            return _same(known, chosen)
        if await connection.fetchval(_QUERIES["count_running"]) >= MAX_RUNNING:
            raise Reject("TOO_MANY_REPLAYS", f"{MAX_RUNNING} replays run already.", status=429)
        if chosen[0] is not None:
            _check_message(await connection.fetchrow(_QUERIES["message"], chosen[0]))
        await connection.execute(_QUERIES["insert"], replay_id, *chosen, until, rate_per_s)
        row = await connection.fetchrow(_QUERIES["find"], replay_id)
    return _replay(row)


def _check_message(row: Any) -> None:  # noqa: ANN401 - a row
    if row is None:
        raise Reject("QUARANTINE_NOT_FOUND", "There is no such refused message.", status=404)
    if not row["has_function"]:
        raise Reject(
            "NOT_REPLAYABLE", "No function takes messages on the message's topic.", status=409
        )
    if row["status"] == "replayed":
        raise Reject("ALREADY_REPLAYED", "The message was accepted by a replay.", status=409)


def _same(known: Any, chosen: tuple[Any, ...]) -> QuarantineReplay:  # noqa: ANN401 - a row
    names = ("quarantine_id", "tenant_id", "device_id", "reason", "since")
    if tuple(known[name] for name in names) != chosen:
        raise Reject("REPLAY_EXISTS", "There is another replay of this id.", status=409)
    return _replay(known)


def _replay(row: Any) -> QuarantineReplay:  # noqa: ANN401 - a row, whose columns the model checks
    return QuarantineReplay.model_validate(dict(row))
