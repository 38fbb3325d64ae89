"""Applies devices' answers to commands."""

from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from functions.commands.lifecycle import AckStatus, leaves
from functions.domain.admission import refuse_device
from functions.domain.envelope import BadEnvelope, Envelope, read_envelope
from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Refusal, is_quarantined, quarantine
from functions.domain.refusal_log import log_refusals
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))


class Ack(BaseModel):
    """A device's answer: `status` says how far the command is, `result` is any JSON value."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    command_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    status: AckStatus = "acked"
    result: Any = None


async def apply_ack(event: Event[bytes], ctx: Context) -> None:
    """Set a command to the status that its device reports; quarantine an invalid answer."""
    try:
        envelope = read_envelope(event.message)
    except BadEnvelope as bad:
        await _refuse(event, ctx, Refusal.of_message(event.message, bad))
        return
    if event.may_be_repeated and await _is_settled(event, ctx, envelope):
        return
    refusal = await refuse_device(ctx.postgres, envelope, event.stored_at_ns)
    if refusal is None:
        refusal = await _apply(event, ctx, envelope)
    if refusal is not None:
        await _refuse(event, ctx, refusal)


async def _refuse(event: Event[bytes], ctx: Context, refusal: Refusal) -> None:
    await quarantine(ctx.postgres, event.message, refusal)
    log_refusals(ctx, [refusal])


async def _is_settled(event: Event[bytes], ctx: Context, envelope: Envelope) -> bool:
    """Whether an earlier delivery was judged. That verdict stands, even if the registry changed."""
    if await is_quarantined(ctx.postgres, event.message):
        return True
    device = (envelope.tenant_id, envelope.device_id)
    noted: bool = await ctx.postgres.fetchval(
        _QUERIES["is_noted"], *device, event.stored_at_ns, event.sequence
    )
    return noted


async def _apply(event: Event[bytes], ctx: Context, envelope: Envelope) -> Refusal | None:
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
    device = (envelope.tenant_id, envelope.device_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        status = await connection.fetchval(_QUERIES["lock"], *device, ack.command_id)
        if status is None:
            return Refusal.of_envelope(
                envelope, "UNKNOWN_COMMAND", "the device has no command with this id"
            )
        counts = status in leaves(ack.status)
        noted = await connection.fetchval(
            _QUERIES["note_ack"],
            ack.command_id,
            event.stored_at_ns,
            event.sequence,
            ack.status,
            result,
            not counts,
            event.stored_at,
        )
        if noted is not None and counts:
            await connection.execute(
                _QUERIES["advance"],
                ack.command_id,
                ack.status,
                result,
                list(leaves(ack.status)),
                event.stored_at,
            )
    return None


def _dump(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    return None if value is None else orjson.dumps(value).decode()
