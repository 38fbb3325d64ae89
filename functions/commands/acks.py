"""Applies devices' answers to commands."""

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from functions.commands.lifecycle import AckStatus, leaves
from functions.domain.admission import SenderSettings, refuse_device
from functions.domain.envelope import BadEnvelope, Envelope, read_envelope
from functions.domain.message_counts import count_duplicate, count_written
from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Refusal, is_refused
from functions.domain.quarantine_replays import (
    Copy,
    accept_copies,
    find_copy,
    lock_open,
    refuse_message,
)
from functions.domain.refusal_log import log_refusals
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))
# The name under which the host looks for a function's settings.
Settings = SenderSettings
MAX_ANSWERS = 100
"""The answers to one command beyond which those that come too late are refused."""

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class Ack(BaseModel):
    """A device's answer: `status` says how far the command is, `result` is any JSON value."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    command_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    status: AckStatus = "acked"
    result: Any = None


async def apply_ack(event: Event[bytes], ctx: Context) -> None:
    """Set a command to the status that its device reports; quarantine an invalid answer."""
    copy = await find_copy(ctx.postgres, event.message)
    if copy is not None and not copy.is_open:
        await count_duplicate(ctx.postgres, event.message)
        return
    try:
        envelope = read_envelope(event.message)
    except BadEnvelope as bad:
        await _refuse(event, ctx, Refusal.of_message(event.message, bad), copy)
        return
    if event.may_be_repeated and await _is_settled(event, ctx, envelope):
        await count_duplicate(ctx.postgres, event.message)
        return
    refusal = await refuse_device(ctx.postgres, envelope, event.stored_at_ns, ctx.settings)
    if refusal is None:
        refusal = await _apply(event, ctx, envelope, copy)
    if refusal is not None:
        await _refuse(event, ctx, refusal, copy)


async def _refuse(event: Event[bytes], ctx: Context, refusal: Refusal, copy: Copy | None) -> None:
    unkept = await refuse_message(ctx.postgres, event.message, refusal, copy)
    log_refusals(ctx, [refusal], unkept)


async def _is_settled(event: Event[bytes], ctx: Context, envelope: Envelope) -> bool:
    """Whether an earlier delivery was judged. That verdict stands, even if the registry changed."""
    if await is_refused(ctx.postgres, event.message):
        return True
    device = (envelope.tenant_id, envelope.device_id)
    noted: bool = await ctx.postgres.fetchval(
        _QUERIES["is_noted"], *device, event.stored_at_ns, event.sequence
    )
    return noted


def _read(envelope: Envelope) -> tuple[Ack, str | None] | Refusal:
    """The answer and its result as JSON."""
    try:
        ack = Ack.model_validate(envelope.payload, strict=True)
        result = _dump(ack.result)
    except ValidationError:
        return Refusal.of_envelope(
            envelope,
            "ACK_INVALID",
            "expected command_id, and status acked, succeeded, failed or rejected",
        )
    if "\x00" in ack.command_id or (result and "\\u0000" in result.replace("\\\\", "")):
        return Refusal.of_envelope(envelope, "ACK_INVALID", "the answer holds a NUL character")
    return ack, result


async def _apply(
    event: Event[bytes], ctx: Context, envelope: Envelope, copy: Copy | None
) -> Refusal | None:
    read = _read(envelope)
    if isinstance(read, Refusal):
        return read
    ack, result = read
    # An answer from quarantine came when it came first.
    came_at = event.stored_at if copy is None else Event(copy.original, b"").stored_at
    device = (envelope.tenant_id, envelope.device_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        if copy is not None and not await lock_open(connection, [copy]):
            await count_duplicate(connection, event.message)
            return None
        status = await connection.fetchval(_QUERIES["lock"], *device, ack.command_id)
        if status is None:
            return Refusal.of_envelope(
                envelope, "UNKNOWN_COMMAND", "the device has no command with this id"
            )
        counts = status in leaves(ack.status)
        if not counts and await _has_all_answers(connection, ack.command_id):
            return Refusal.of_envelope(
                envelope, "TOO_MANY_ANSWERS", "the command keeps no more answers that come late"
            )
        noted = await connection.fetchval(
            _QUERIES["note_ack"],
            ack.command_id,
            event.stored_at_ns,
            event.sequence,
            ack.status,
            result,
            not counts,
            came_at,
        )
        if noted is None:
            await count_duplicate(connection, event.message)
            return None
        await count_written(connection, event.message)
        if copy is not None:
            await accept_copies(connection, [copy])
        if counts:
            await connection.execute(
                _QUERIES["advance"],
                ack.command_id,
                ack.status,
                result,
                list(leaves(ack.status)),
                came_at,
            )
    return None


async def _has_all_answers(connection: Connection, command_id: str) -> bool:
    answers: int = await connection.fetchval(_QUERIES["count_answers"], command_id, MAX_ANSWERS)
    return answers >= MAX_ANSWERS


def _dump(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    return None if value is None else orjson.dumps(value).decode()
