"""Applies devices' answers to commands."""

from typing import Annotated, Any, TypeAlias

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from functions.commands.lifecycle import AckStatus, leaves
from functions.commands.rates import Rate
from functions.commands.store import QUERIES, advance
from functions.domain.admission import SenderSettings, refuse_device
from functions.domain.device_activity import Seen, note_seen
from functions.domain.envelope import BadEnvelope, Envelope, read_envelope
from functions.domain.message_counts import count_duplicate, count_written
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

MAX_ANSWERS = 100
"""The answers to one command beyond which those that come too late are refused."""
TOO_FAST = ("RATE_LIMITED", "the device answers faster than its rate allows")

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class AckSettings(SenderSettings):
    """How a device proves its answers, and how many are taken of it.

    Attributes:
        rate_per_s, burst: answers of one device, at all hosts. What exceeds them is quarantined.
    """

    rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 10.0
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 500


# The name under which the host looks for a function's settings.
Settings = AckSettings


class Ack(BaseModel):
    """A device's answer: `status` says how far the command is, `result` is any JSON value."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    command_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    status: AckStatus = "acked"
    result: Any = None


async def start(ctx: Context[Rate]) -> Rate:
    """The rate of each device."""
    settings: AckSettings = ctx.settings
    rate = Rate("command_answers", settings.rate_per_s, settings.burst, ctx)
    rate.sharing.start()
    return rate


async def stop(ctx: Context[Rate]) -> None:
    """Stop sharing it."""
    await ctx.state.sharing.stop()


async def apply_ack(event: Event[bytes], ctx: Context[Rate]) -> None:
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
    if refusal is None and event.message.attempt == 1 and copy is None:
        # Charged to who has proved to be the device: nobody else can silence it. One that was moved
        # aside in a flood is charged, too, although it may be repeated.
        key = (envelope.tenant_id, envelope.device_id)
        was_spilled = event.message.called_before
        take = ctx.state.take_spilled if was_spilled else ctx.state.take
        if not take(key, event.stored_at_ns):
            refusal = Refusal.of_envelope(envelope, *TOO_FAST)
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
        QUERIES["is_noted"], *device, event.stored_at_ns, event.sequence
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
    event: Event[bytes], ctx: Context[Rate], envelope: Envelope, copy: Copy | None
) -> Refusal | None:
    read = _read(envelope)
    if isinstance(read, Refusal):
        return read
    ack, result = read
    # An answer from quarantine came when it came first.
    came_at = event.stored_at if copy is None else Event(copy.original, b"").stored_at
    key = (envelope.tenant_id, envelope.device_id, ack.command_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        if copy is not None and not await lock_open(connection, [copy]):
            await count_duplicate(connection, event.message)
            return None
        status = await connection.fetchval(QUERIES["lock"], *key)
        if status is None:
            return Refusal.of_envelope(
                envelope, "UNKNOWN_COMMAND", "the device has no command with this id"
            )
        counts = status in leaves(ack.status)
        if not counts and await _has_all_answers(connection, key):
            return Refusal.of_envelope(
                envelope, "TOO_MANY_ANSWERS", "the command keeps no more answers that come late"
            )
        noted = await connection.fetchval(
            QUERIES["note_ack"],
            *key,
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
        if copy is None:
            device = (envelope.tenant_id, envelope.device_id)
            seen = Seen(event.stored_at_ns, envelope.is_sessionless)
            await note_seen(connection, {device: seen})
        else:
            await accept_copies(connection, [copy])
        if counts:
            await advance(connection, key, ack.status, result, came_at)
    return None


async def _has_all_answers(connection: Connection, key: tuple[str, str, str]) -> bool:
    answers: int = await connection.fetchval(QUERIES["count_answers"], *key, MAX_ANSWERS)
    return answers >= MAX_ANSWERS


def _dump(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    return None if value is None else orjson.dumps(value).decode()
