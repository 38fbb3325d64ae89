"""Does what devices ask of their shadows: updates, questions, deletions, each with its answer.

A message is noted, takes effect, is counted, and has its answers in the outbox, all in one
transaction: whatever dies, each request counts once, and its answers are sent.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, NamedTuple

import structlog
from pydantic import Field

from functions.domain.admission import SenderSettings, refuse_device
from functions.domain.device_activity import Seen, note_seen
from functions.domain.downlinks import add_downlinks
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
from functions.domain.rate_sharing import PostgresStore, Store
from functions.domain.refusal_log import log_refusals
from functions.shadow import store
from functions.shadow.answers import Answer, Cause, answer_to_get, as_downlinks, rejection
from functions.shadow.changes import delete_shadow, update_shadow
from functions.shadow.rates import Rates
from functions.shadow.requests import Request, Target, read_request, read_target
from functions.shadow.section import NS_PER_S
from functions.shadow.shadow import ChangeRefused, Shadow
from functions.shadow.store import Connection
from runtime import Context, Event, Message


class ShadowSettings(SenderSettings):
    """What a device may ask, and how it proves itself.

    Attributes:
        rate_per_s: requests of a device in a second, about all its shadows together.
        burst: requests of a device at once. Hosts keep the rate together, see `RateSharing`.
        tenant_bytes_per_s: bytes of the documents that the requests of all devices of a tenant
            read and are answered with in a second: what a request costs goes by them.
        tenant_burst_bytes: of these at once.
        max_named: shadows with a name that a device may have; a deleted one counts until it is
            forgotten.
    """

    rate_per_s: Annotated[float, Field(gt=0, le=100_000)] = 5.0
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    tenant_bytes_per_s: Annotated[int, Field(ge=1, le=10**12)] = 2_000_000
    tenant_burst_bytes: Annotated[int, Field(ge=1000, le=10**12)] = 64_000_000
    max_named: Annotated[int, Field(ge=0, le=1000)] = 10

    def rates(self, store: Store, log: structlog.stdlib.BoundLogger) -> Rates:
        """The rates, with nothing used."""
        return Rates(
            (self.rate_per_s, self.burst),
            (self.tenant_bytes_per_s, self.tenant_burst_bytes),
            store,
            log,
        )


# The name under which the host looks for a function's settings.
Settings = ShadowSettings


class _Call(NamedTuple):
    """A message of a device that has proved itself.

    Attributes:
        first: the message as it was stored first: a request from quarantine is as old as it was,
            and overwrites nothing newer.
    """

    message: Message
    first: Message
    copy: Copy | None
    envelope: Envelope
    target: Target
    cause: Cause
    max_named: int

    def stamp(self, shadow: Shadow) -> int:
        """The stamp of the change."""
        return shadow.stamp_message(self.first.sequence, self.first.stored_at_ns)


class _Done(NamedTuple):
    """What a request has brought about.

    Attributes:
        work_bytes: of the documents that it read and is answered with.
        refusal: why it is refused; None if it is not.
        unkept: how many refused messages of a tenant quarantine had no room for.
    """

    work_bytes: int = 0
    refusal: Refusal | None = None
    unkept: Mapping[str, int] = MappingProxyType({})


async def start(ctx: Context[Rates]) -> Rates:
    """Make the rate limiters, and share them with other hosts."""
    settings: ShadowSettings = ctx.settings
    rates = settings.rates(PostgresStore(ctx.postgres), ctx.log)
    rates.sharing.start()
    return rates


async def stop(ctx: Context[Rates]) -> None:
    """Stop sharing."""
    await ctx.state.sharing.stop()


async def answer_device(event: Event[bytes], ctx: Context[Rates]) -> None:
    """Do what a device asks of its shadow, and answer; quarantine what is not acceptable.

    Only a sender who has proved to be the device gets an answer.
    """
    message = event.message
    copy = await find_copy(ctx.postgres, message)
    if copy is not None and not copy.is_open:
        await count_duplicate(ctx.postgres, message)
        return
    try:
        envelope = read_envelope(message)
    except BadEnvelope as bad:
        await _quarantine(ctx, message, Refusal.of_message(message, bad), copy)
        return
    if event.may_be_repeated and await _is_settled(ctx, message, envelope):
        await count_duplicate(ctx.postgres, message)
        return
    settings: ShadowSettings = ctx.settings
    refusal = await refuse_device(ctx.postgres, envelope, message.stored_at_ns, settings)
    if refusal is not None:
        await _quarantine(ctx, message, refusal, copy)
        return
    target = read_target(envelope)
    at_s = message.stored_at_ns // NS_PER_S
    call = _Call(
        message,
        message if copy is None else copy.original,
        copy,
        envelope,
        target,
        Cause(message.origin, at_s, target.client_token),
        settings.max_named,
    )
    # A redelivery took its token the first time, and a copy is not the device's. One that was moved
    # aside has taken none, although it may be repeated.
    is_new = copy is None and message.attempt == 1
    await _settle(ctx, call, ctx.state if is_new else None)


async def _is_settled(ctx: Context[Rates], message: Message, envelope: Envelope) -> bool:
    """Whether an earlier delivery was judged. That verdict stands, even if the registry changed."""
    device = (envelope.tenant_id, envelope.device_id)
    return await is_refused(ctx.postgres, message) or await store.is_noted(
        ctx.postgres, *device, message.sequence, message.stored_at_ns
    )


async def _quarantine(
    ctx: Context[Rates], message: Message, refusal: Refusal, copy: Copy | None
) -> None:
    unkept = await refuse_message(ctx.postgres, message, refusal, copy)
    log_refusals(ctx, [refusal], unkept)


async def _settle(ctx: Context[Rates], call: _Call, rates: Rates | None) -> None:
    device = (call.target.key.tenant_id, call.target.key.device_id)
    is_told = True
    request: Request | ChangeRefused
    try:
        if rates is not None:
            rates.require(device, call.message)
        request = read_request(call.envelope)
    except ChangeRefused as refused:
        request = refused
        if rates is not None and refused.code == "RATE_LIMITED":
            is_told = rates.may_tell(device, call.message)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        done = await _judge(connection, call, request, is_told=is_told)
    if rates is not None:
        rates.charge(device, call.message, done.work_bytes)
    if done.refusal is not None:
        log_refusals(ctx, [done.refusal], done.unkept)


async def _judge(
    connection: Connection, call: _Call, request: Request | ChangeRefused, *, is_told: bool
) -> _Done:
    """Everything that a request brings about."""
    message, copy, key = call.message, call.copy, call.target.key
    if copy is not None and not await lock_open(connection, [copy]):
        await count_duplicate(connection, message)
        return _Done()
    device = (key.tenant_id, key.device_id)
    if not await store.note_request(connection, *device, message.sequence, message.stored_at_ns):
        await count_duplicate(connection, message)
        return _Done()
    shadow: Shadow | None = None
    try:
        if isinstance(request, ChangeRefused):
            raise request
        shadow = await _load(connection, call)
        answers = await _do(connection, call, request, shadow)
    except ChangeRefused as refused:
        if call.target.verb == "update":
            await store.drop_unused(connection, key)
        rejected = [rejection(call.target.verb, refused, call.cause)] if is_told else []
        await add_downlinks(connection, as_downlinks(key, rejected, call.cause))
        refusal = Refusal.of_envelope(call.envelope, refused.code, refused.reason)
        unkept = await refuse_message(connection, message, refusal, copy)
        return _Done(_bytes_read(shadow), refusal, unkept)
    downlinks = as_downlinks(key, answers, call.cause)
    await add_downlinks(connection, downlinks)
    await count_written(connection, message)
    if copy is None:
        seen = Seen(message.stored_at_ns, call.envelope.is_sessionless)
        await note_seen(connection, {device: seen})
    else:
        await accept_copies(connection, [copy])
    return _Done(_bytes_read(shadow) + sum(len(each.body) for each in downlinks))


def _bytes_read(shadow: Shadow | None) -> int:
    return 0 if shadow is None else shadow.read_bytes


async def _load(connection: Connection, call: _Call) -> Shadow | None:
    """The shadow, locked if it may be changed; None when there never was one."""
    key = call.target.key
    match call.target.verb:
        case "update":
            return await store.lock_or_make(connection, key, call.max_named)
        case "delete":
            return await store.lock(connection, key)
        case "get":
            return await store.read(connection, key)


async def _do(
    connection: Connection, call: _Call, request: Request, shadow: Shadow | None
) -> list[Answer]:
    cause = call.cause
    if request.update is not None and shadow is not None:
        return await update_shadow(connection, shadow, request.update, call.stamp, cause)
    if call.target.verb == "delete":
        return [await delete_shadow(connection, shadow, request.version, call.stamp, cause)]
    return [answer_to_get(shadow, cause)]


__all__ = ["Settings", "ShadowSettings", "answer_device", "start", "stop"]
