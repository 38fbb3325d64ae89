"""Endpoints for accepted messages: status, list, and what a person may do about one."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.paging import Cursor, Page, as_text, as_time, cut, read_cursor
from functions.domain.values import Limit, ShortText, Time
from functions.messages.announcing import announce, enqueue
from functions.messages.contents import Kind, MessageId, OutMessage, read_content
from functions.messages.lifecycle import RESENDS, SETTLES, Status
from functions.messages.provider import Outcome
from functions.messages.store import UNPUBLISHED_CHECK_S, Advance, MessageStore, Transition
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("endpoints.sql"))


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId


class MessageRequest(_Request):
    """A request about one message."""

    message_id: MessageId


class MarkMessage(MessageRequest):
    """What a person knows about a message of unknown result."""

    status: Literal["sent", "delivered", "failed"]
    reason: ShortText = ""


class ListMessages(_Request):
    """A request for a tenant's messages: all, or those of one kind, one status, or since a time."""

    kind: Kind | None = None
    status: Status | None = None
    since: Time | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class ListUnknown(BaseModel):
    """A request for messages of unknown result, of all tenants: all, or those of one kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: Kind | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class MessageStatus(BaseModel):
    """A message and its status, without its content."""

    message_id: str
    tenant_id: str
    kind: Kind
    status: Status
    attempts: int
    provider: str | None
    provider_id: str | None
    error_code: str | None
    reason: str | None
    created_at: datetime
    updated_at: datetime
    sent_at: datetime | None
    finished_at: datetime | None


class UnknownMessage(MessageStatus):
    """A message of unknown result. `next_look_up_at`: None when only a person can settle it."""

    next_look_up_at: datetime | None


class MessageAttempt(BaseModel):
    """One call of the provider. Without an outcome it is under way, or its host died."""

    attempt: int
    provider: str
    started_at: datetime
    finished_at: datetime | None
    outcome: Outcome | None
    status_code: int | None
    error_code: str | None
    reason: str | None
    provider_id: str | None


class MessageTransition(BaseModel):
    """One transition, as it is published on the status subject."""

    number: int
    status: Status
    error_code: str | None
    at: datetime


class MessageRecipient(BaseModel):
    """What a mail server said of a recipient: `waiting` is asked for again."""

    address: str
    outcome: Literal["accepted", "waiting", "refused"]
    status_code: int | None
    reason: str | None
    at: datetime


class MessageDetails(MessageStatus):
    """A message with its content, its newest 100 attempts and its newest 100 transitions.

    `recipients` has what the mail server said of each, for an email that one did not get at once.
    """

    content: dict[str, Any]
    attempt_log: list[MessageAttempt]
    transitions: list[MessageTransition]
    recipients: list[MessageRecipient]


async def start(ctx: Context[MessageStore]) -> MessageStore:
    """Open the store."""
    return MessageStore(ctx.postgres)


async def stop(ctx: Context[MessageStore]) -> None:
    """Wait for what was begun."""
    await ctx.state.close()


async def get_message(event: Event[MessageRequest], ctx: Context[MessageStore]) -> MessageDetails:
    """One message, with its attempts and transitions."""
    name = (event.data.tenant_id, event.data.message_id)
    row = await ctx.postgres.fetchrow(_QUERIES["get"], *name)
    if row is None:
        raise _not_found()
    attempts = await ctx.postgres.fetch(_QUERIES["attempts"], *name)
    transitions = await ctx.postgres.fetch(_QUERIES["transitions"], *name)
    recipients = await ctx.postgres.fetch(_QUERIES["recipients"], *name)
    return MessageDetails.model_validate(
        {
            **row,
            "content": orjson.loads(row["content"]),
            "attempt_log": [dict(each) for each in attempts],
            "transitions": [dict(each) for each in transitions],
            "recipients": [dict(each) for each in recipients],
        }
    )


async def list_messages(
    event: Event[ListMessages], ctx: Context[MessageStore]
) -> Page[MessageStatus]:
    """A tenant's messages, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page"],
        query.tenant_id,
        query.kind,
        query.status,
        query.since,
        *read_cursor(query.cursor, as_time, as_text),
        query.limit + 1,
    )
    items = [MessageStatus.model_validate(dict(row)) for row in rows]
    return cut(items, query.limit, lambda item: (item.created_at, item.message_id))


async def list_unknown_messages(
    event: Event[ListUnknown], ctx: Context[MessageStore]
) -> Page[UnknownMessage]:
    """Messages of all tenants whose result nobody knows, the oldest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page_of_unknown"],
        query.kind,
        *read_cursor(query.cursor, as_time, as_text, as_text),
        query.limit + 1,
    )
    items = [UnknownMessage.model_validate(dict(row)) for row in rows]
    return cut(items, query.limit, lambda item: (item.updated_at, item.tenant_id, item.message_id))


async def resend_message(event: Event[MessageRequest], ctx: Context[MessageStore]) -> MessageStatus:
    """Send a message again that has failed, was refused, or whose result is unknown.

    It gets as many attempts as a new one. If its result was unknown, the recipient may get it
    twice: whoever asks has decided that.
    """
    wanted = event.data
    found = await ctx.state.find(wanted.tenant_id, wanted.message_id)
    if found is None:
        raise _not_found()
    moved = await ctx.state.advance(
        Advance(
            wanted.tenant_id,
            wanted.message_id,
            found.attempts or None,
            "queued",
            ",".join(RESENDS),
            check_in_s=UNPUBLISHED_CHECK_S,
            free_attempts=found.attempts,
        )
    )
    if moved is None:
        raise await _conflict(
            ctx,
            wanted,
            "Only a message that has failed, was refused or is unknown can be sent again",
        )
    await announce(ctx, ctx.state, moved)
    await enqueue(ctx, ctx.state, await read_message(ctx, moved), moved)
    return await _status(ctx, wanted)


async def mark_message(event: Event[MarkMessage], ctx: Context[MessageStore]) -> MessageStatus:
    """Settle a message of unknown result by what a person has found out."""
    wanted = event.data
    moved = await ctx.state.advance(
        Advance(
            wanted.tenant_id,
            wanted.message_id,
            None,
            wanted.status,
            ",".join(SETTLES),
            error_code="MARKED_FAILED" if wanted.status == "failed" else None,
            reason=wanted.reason or None,
        )
    )
    if moved is None:
        raise await _conflict(ctx, wanted, "Only a message of unknown result can be marked")
    await announce(ctx, ctx.state, moved)
    return await _status(ctx, wanted)


async def read_message(ctx: Context[Any], named: Transition) -> OutMessage:
    """A message with its content, from its row."""
    content = await ctx.postgres.fetchval(_QUERIES["content"], named.tenant_id, named.message_id)
    return OutMessage(named.tenant_id, named.message_id, read_content(named.kind, content))


async def _status(ctx: Context[Any], wanted: MessageRequest) -> MessageStatus:
    row = await ctx.postgres.fetchrow(_QUERIES["get"], wanted.tenant_id, wanted.message_id)
    if row is None:
        raise _not_found()
    return MessageStatus.model_validate(dict(row))


async def _conflict(ctx: Context[Any], wanted: MessageRequest, rule: str) -> Reject:
    found = await _status(ctx, wanted)
    return Reject("MESSAGE_STATUS", f"{rule}; this one is {found.status}.", status=409)


def _not_found() -> Reject:
    return Reject("MESSAGE_NOT_FOUND", "The tenant has no such message.", status=404)


__all__ = [
    "get_message",
    "list_messages",
    "list_unknown_messages",
    "mark_message",
    "resend_message",
    "start",
    "stop",
]
