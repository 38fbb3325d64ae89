"""Endpoints for quarantine: refused messages with their original bytes, and how many there were."""

import base64
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, Field, StringConstraints

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_integer, as_text, as_time, cut, read_cursor
from functions.domain.values import NO_NUL, ShortText, Time
from functions.management.requests import ListRequest, Request
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("quarantine.sql"))

# Together less than a server's usual limit of 1 MB, also in base64.
_SHOWN_BYTES = 500_000
_SHOWN_HEADER_BYTES = 100_000

QuarantineId = Annotated[int, Field(ge=1, lt=2**63)]
Status = Literal["quarantined", "replaying", "replayed"]
Reason = Annotated[str, StringConstraints(max_length=256, pattern=NO_NUL)]


class ListQuarantine(ListRequest):
    """A request for refused messages. A field that could not be read is stored empty."""

    tenant_id: ShortText | None = None
    device_id: ShortText | None = None
    reason: Reason | None = None
    status: Status | None = None
    since: Time | None = None


class GetQuarantined(Request):
    """A request for one refused message."""

    quarantine_id: QuarantineId


class CountQuarantine(ListRequest):
    """A request for numbers of refused messages; tenant "" stands for all that do not exist."""

    tenant_id: ShortText | None = None
    reason: Reason | None = None
    since: Time | None = None
    until: Time | None = None


class RefusedInMinute(BaseModel):
    """How many messages were refused for one reason within one minute.

    Attributes:
        minute: its begin.
        tenant_id: the tenant in the messages' subjects; empty for tenants that do not exist.
        reason: the reason code, without what a sender wrote into it.
        quarantined: messages that went into quarantine.
        refused: messages that were counted only, since quarantine had no room for them.
    """

    minute: datetime
    tenant_id: str
    reason: str
    quarantined: int
    refused: int


class Quarantined(BaseModel):
    """A refused message without its payload.

    Attributes:
        status: `quarantined`; `replaying` while a copy is on its way; `replayed` when the copy was
            accepted, which is where the message is now.
        replay_id: the last replay that took the message.
        replayed_at: when that replay sent its copy, or when the copy was judged.
        replays: how many replays took it.
    """

    quarantine_id: int
    event_ts: datetime
    stream: str
    sequence: int
    stored_at: datetime
    subject: str
    topic: str
    tenant_id: str
    site_id: str
    device_id: str
    msg_type: str
    reason: str
    detail: str
    payload_bytes: int
    status: Status
    replay_id: UUID | None
    replayed_at: datetime | None
    replays: int


class QuarantinedMessage(Quarantined):
    """A refused message with its payload in base64.

    Attributes:
        is_whole: False if an answer has no room for the message: of the payload it has the first
            500,000 bytes then, and no headers of more than 100,000. A replay sends all of it.
    """

    headers: dict[str, Any]
    payload_base64: str
    is_whole: bool


async def list_quarantine(event: Event[ListQuarantine], ctx: Context) -> Page[Quarantined]:
    """Refused messages, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page"],
        query.tenant_id,
        query.device_id,
        query.reason,
        query.status,
        query.since,
        *read_cursor(query.cursor, as_time, as_integer),
        query.limit + 1,
    )
    items = [Quarantined.model_validate(dict(row)) for row in rows]
    return cut(items, query.limit, lambda item: (item.event_ts, item.quarantine_id))


async def get_quarantined(event: Event[GetQuarantined], ctx: Context) -> QuarantinedMessage:
    """One refused message, with headers and payload, so that it can be sent again."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.quarantine_id)
    if row is None:
        raise Reject("QUARANTINE_NOT_FOUND", "There is no such refused message.", status=404)
    known = dict(row)
    payload, headers = known.pop("payload"), known.pop("headers")
    has_headers = len(headers.encode()) <= _SHOWN_HEADER_BYTES
    return QuarantinedMessage(
        **known,
        headers=orjson.loads(headers) if has_headers else {},
        payload_base64=base64.b64encode(payload[:_SHOWN_BYTES]).decode(),
        is_whole=has_headers and len(payload) <= _SHOWN_BYTES,
    )


async def count_quarantine(event: Event[CountQuarantine], ctx: Context) -> Page[RefusedInMinute]:
    """Numbers of refused messages by minute, tenant and reason, newest minute first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["minutes"],
        *(query.tenant_id, query.reason, query.since, query.until),
        *read_cursor(query.cursor, as_time, as_text, as_text),
        query.limit + 1,
    )
    items = [RefusedInMinute.model_validate(dict(row)) for row in rows]
    return cut(items, query.limit, lambda item: (item.minute, item.tenant_id, item.reason))
