"""Endpoints for the books of messages: received = written + quarantined + refused + duplicate."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from functions.domain.message_counts import (
    UNKNOWN,
    MessageCounts,
    counts_of_all,
    counts_of_tenant,
)
from functions.domain.named_sql import read_queries
from functions.management.requests import Request, TenantRequest
from functions.management.tenants import tenant_not_found
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("message_books.sql"))


class MessageBooksRequest(Request):
    """A request for the books of all messages."""


class TenantMessageBooksRequest(TenantRequest):
    """A request for the books of one tenant's messages."""


class MessageBooks(BaseModel):
    """Devices' messages by what became of them, at one moment.

    Attributes:
        received: messages that were judged: telemetry, reports, answers to commands, and messages
            on topics that belong to nothing. One that is delivered again counts again.
        written: became a telemetry row, an answered request about a shadow, or an answer to a
            command.
        quarantined: refused and in quarantine. One that was replayed counts as what became of it,
            and one that was removed for its age still counts.
        refused: refused and counted only: quarantine had no room for it.
        duplicate: delivered again after they were settled.
        kept: messages that quarantine holds now, replayed ones too; it has a limit.
        kept_bytes: their size, which has a limit, too.
        is_balanced: `received` is the sum of the four. False would be a defect.
        read_at: the moment.
    """

    received: int
    written: int
    quarantined: int
    refused: int
    duplicate: int
    kept: int
    kept_bytes: int
    is_balanced: bool
    read_at: datetime


class AllMessageBooks(MessageBooks):
    """The books of all messages.

    Attributes:
        unknown: the part of them that names no tenant which exists.
    """

    unknown: MessageBooks


async def get_message_books(event: Event[MessageBooksRequest], ctx: Context) -> AllMessageBooks:
    """The books of all messages, and of those of tenants that do not exist."""
    async with _snapshot(ctx) as connection:
        everything = _books(await counts_of_all(connection), await _kept(connection, None))
        unknown = await _books_of(connection, UNKNOWN)
    return AllMessageBooks(**everything.model_dump(), unknown=unknown)


async def get_tenant_message_books(
    event: Event[TenantMessageBooksRequest], ctx: Context
) -> MessageBooks:
    """The books of one tenant's messages."""
    tenant_id = event.data.tenant_id
    async with _snapshot(ctx) as connection:
        if not await connection.fetchval(_QUERIES["has_tenant"], tenant_id):
            raise tenant_not_found()
        return await _books_of(connection, tenant_id)


@asynccontextmanager
async def _snapshot(ctx: Context) -> AsyncIterator[Any]:
    """A connection whose statements all see the database at one moment."""
    async with (
        ctx.postgres.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield connection


async def _books_of(connection: Any, tenant_id: str) -> MessageBooks:  # noqa: ANN401 - a connection
    counts = await counts_of_tenant(connection, tenant_id)
    return _books(counts, await _kept(connection, tenant_id))


async def _kept(connection: Any, tenant_id: str | None) -> Any:  # noqa: ANN401 - a connection, a row
    return await connection.fetchrow(_QUERIES["kept"], tenant_id)


def _books(counts: MessageCounts, kept: Any) -> MessageBooks:  # noqa: ANN401 - a row
    settled = counts.written + counts.quarantined + counts.refused + counts.duplicate
    return MessageBooks(**asdict(counts), **kept, is_balanced=counts.received == settled)
