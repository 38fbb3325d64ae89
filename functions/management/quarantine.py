"""Endpoints for quarantine: refused messages, with the reason and the original bytes."""

import base64
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field, StringConstraints

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_integer, as_time, cut, read_cursor
from functions.domain.values import NO_NUL, ShortText, Time
from functions.management.requests import ListRequest, Request
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("quarantine.sql"))


class ListQuarantine(ListRequest):
    """A request for refused messages. A field that could not be read is stored empty."""

    tenant_id: ShortText | None = None
    device_id: ShortText | None = None
    reason: Annotated[str, StringConstraints(max_length=256, pattern=NO_NUL)] | None = None
    since: Time | None = None


class GetQuarantined(Request):
    """A request for one refused message."""

    quarantine_id: Annotated[int, Field(ge=1, lt=2**63)]


class Quarantined(BaseModel):
    """A refused message without its payload."""

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


class QuarantinedMessage(Quarantined):
    """A refused message with its payload in base64."""

    headers: dict[str, Any]
    payload_base64: str


async def list_quarantine(event: Event[ListQuarantine], ctx: Context) -> Page[Quarantined]:
    """Refused messages, newest first."""
    query = event.data
    rows = await ctx.postgres.fetch(
        _QUERIES["page"],
        query.tenant_id,
        query.device_id,
        query.reason,
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
    payload = base64.b64encode(known.pop("payload")).decode()
    headers = orjson.loads(known.pop("headers"))
    return QuarantinedMessage(**known, headers=headers, payload_base64=payload)
