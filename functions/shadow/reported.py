"""Merges the state that devices report into their shadows."""

from collections.abc import Mapping
from typing import Any

import orjson

from functions.domain.admission import SenderSettings, refuse_device
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
from functions.shadow import store
from functions.shadow.changes import (
    ChangeRefused,
    Update,
    apply_update,
    send_delta,
)
from runtime import Context, Event

# The name under which the host looks for a function's settings.
Settings = SenderSettings
_MAX_CLIENT_TOKEN_BYTES = 64


async def apply_reported(event: Event[bytes], ctx: Context) -> None:
    """Merge a device's report into its shadow; quarantine an unacceptable report.

    Forms: `{"reported": {…}}` and AWS IoT's `{"state": {"reported": {…}, "desired": …}}`, both with
    an optional `version` and `clientToken`, and the device's `provision_token`.
    """
    copy = await find_copy(ctx.postgres, event.message)
    if copy is not None and not copy.is_open:
        await count_duplicate(ctx.postgres, event.message)
        return
    try:
        envelope = read_envelope(event.message)
        if event.may_be_repeated and await _is_settled(event, ctx, envelope):
            await count_duplicate(ctx.postgres, event.message)
            return
        refusal = await refuse_device(ctx.postgres, envelope, event.stored_at_ns, ctx.settings)
        update = None if refusal else read_update(envelope)
    except BadEnvelope as bad:
        refusal, update = Refusal.of_message(event.message, bad), None
    except ChangeRefused as refused:
        refusal, update = Refusal.of_envelope(envelope, refused.code, refused.reason), None
    if refusal:
        unkept = await refuse_message(ctx.postgres, event.message, refusal, copy)
        log_refusals(ctx, [refusal], unkept)
    elif update:
        await _apply(event, ctx, envelope, update, copy)


async def _is_settled(event: Event[bytes], ctx: Context, envelope: Envelope) -> bool:
    """Whether an earlier delivery was judged. That verdict stands, even if the registry changed."""
    device = (envelope.tenant_id, envelope.device_id)
    return await is_refused(ctx.postgres, event.message) or await store.is_noted(
        ctx.postgres, *device, event.sequence, event.stored_at_ns
    )


def read_update(envelope: Envelope) -> Update:
    """The update that a device's payload holds.

    Raises:
        ChangeRefused: `SHADOW_INVALID`.
    """
    payload = envelope.payload
    if ("state" in payload) == ("reported" in payload):
        raise ChangeRefused("SHADOW_INVALID", "expected either `reported` or `state`")
    state = payload.get("state", {"reported": payload.get("reported")})
    if not isinstance(state, dict) or not state or state.keys() - {"desired", "reported"}:
        raise ChangeRefused("SHADOW_INVALID", "`state` may hold `reported` and `desired` only")
    version, token = payload.get("version"), payload.get("clientToken")
    if version is not None and (type(version) is not int or version < 0):
        raise ChangeRefused("SHADOW_INVALID", "`version` is not a whole number of at least 0")
    if token is not None and not _is_client_token(token):
        raise ChangeRefused("SHADOW_INVALID", "`clientToken` may be a text of up to 64 bytes")
    return Update(state, version, token)


async def _apply(
    event: Event[bytes], ctx: Context, envelope: Envelope, update: Update, copy: Copy | None
) -> None:
    refusal: Refusal | None = None
    unkept: Mapping[str, int] = {}
    # A report from quarantine is as old as it was: it overwrites nothing newer.
    first = event.message if copy is None else copy.original
    async with ctx.postgres.acquire() as connection, connection.transaction():
        if copy is not None and not await lock_open(connection, [copy]):
            await count_duplicate(connection, event.message)
            return
        shadow = await store.lock(connection, envelope.tenant_id, envelope.device_id)
        if not await store.note_message(connection, shadow, event.sequence, event.stored_at_ns):
            ctx.log.debug("the report was applied before")
            await count_duplicate(connection, event.message)
            return
        try:
            apply_update(
                shadow, update, lambda: shadow.stamp_message(first.sequence, first.stored_at_ns)
            )
        except ChangeRefused as refused:
            # Quarantine in the transaction that notes the message, so that a redelivery is not
            # judged again after the version has changed.
            refusal = Refusal.of_envelope(envelope, refused.code, refused.reason)
            unkept = await refuse_message(connection, event.message, refusal, copy)
        else:
            await store.save(connection, shadow)
            await count_written(connection, event.message)
            if copy is not None:
                await accept_copies(connection, [copy])
    if refusal is not None:
        log_refusals(ctx, [refusal], unkept)
        return
    await send_delta(ctx, shadow, update.client_token)


def _is_client_token(token: Any) -> bool:  # noqa: ANN401 - as it came
    return isinstance(token, str) and len(orjson.dumps(token)) - 2 <= _MAX_CLIENT_TOKEN_BYTES
