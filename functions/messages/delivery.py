"""Sends a message of any kind: claim it, call the provider once, record the result, settle.

Before the call the row says `sending`, with the attempt's number. So a delivery after a crash finds
an attempt whose result nobody knows, and the message is not sent again before that is known.
"""

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol

from functions.messages.announcing import announce
from functions.messages.contents import OutMessage, Queued
from functions.messages.letter_budget import LetterBudget
from functions.messages.lifecycle import Status, leaves
from functions.messages.provider import Admission, Outcome, Provider, Receipt
from functions.messages.store import Advance, Claim, MessageStore, NewMessage, Transition
from runtime import Context, Event, Reject, Retry

DEFAULT_TENANT = "default"
"""The tenant of messages that name none."""

LONG_WAIT_S = 30.0
"""A wait outside of the stream. The row has to know of it: else `reconcile` misses the message in
the stream, and publishes another copy of it every hour."""

_RACE_S = 1.0
_RETRY_CHECK_S = 3600.0
_NEXT: dict[Outcome, Status] = {
    "sent": "sent",
    "delivered": "delivered",
    "refused": "refused",
    "unknown": "unknown",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Bounds of sending.

    Attributes:
        attempts: the most calls of the provider for one message; as many as the manifest's
            `retry.attempts`.
        call_s: time limit of one call.
        busy_for_s: how long after its acceptance a message waits for a busy provider.
    """

    attempts: int = 5
    call_s: float = 15.0
    busy_for_s: float = 86_400.0

    @property
    def lease_s(self) -> float:
        """How long an attempt may be running after it was claimed."""
        return self.call_s + 15.0


@dataclass(frozen=True, slots=True)
class Sender:
    """What sends messages of one kind: the state of its function.

    `letters`: decides which messages that are given up leave a dead letter; None for all.
    """

    store: MessageStore
    provider: Provider
    policy: Policy = Policy()
    letters: LetterBudget | None = None


class Named(Protocol):
    """Anything that names a message."""

    @property
    def tenant_id(self) -> str: ...

    @property
    def message_id(self) -> str: ...


def identify(event: Event[Any]) -> OutMessage:
    """The message of an event; one without an id has that of its place in the stream."""
    queued: Queued = event.data
    return OutMessage(
        queued.tenant_id or DEFAULT_TENANT,
        queued.message_id or event.message.origin,
        queued,
        event.stored_at,
    )


async def deliver_message(event: Event[Any], ctx: Context[Any], sender: Sender) -> None:
    """Make one attempt at the message, unless it has left `queued` already.

    Raises:
        Reject: the message was refused, has failed for the last time, or uses the id of another.
        Retry: the attempt failed, or it is too early for one.
    """
    message = identify(event)
    admission = await sender.provider.admit(message)
    if admission.wait_s > 0:
        if admission.wait_s >= LONG_WAIT_S:
            await _postpone(ctx, sender, message, admission)
        raise Retry(admission.reason, delay_s=admission.wait_s, counts=False)
    begun_s = asyncio.get_running_loop().time()
    claim = Claim(message, admission.account, sender.policy.lease_s)
    claimed = await sender.store.claim(claim)
    if claimed is None:
        if not await _may_claim(ctx, sender, message):
            return
        claimed = await sender.store.claim(claim)
        if claimed is None:
            raise Retry("the message is being claimed elsewhere", delay_s=_RACE_S, counts=False)
    telling = asyncio.create_task(announce(ctx, sender.store, claimed))
    try:
        receipt = await _call(ctx, sender, claim, begun_s)
    finally:
        await telling
    await _settle(ctx, sender, claimed, receipt, len(event.raw))


async def _postpone(
    ctx: Context[Any], sender: Sender, message: OutMessage, admission: Admission
) -> None:
    """Show in the message's row why it waits for long; one that a program published gets a row."""
    code, _, reason = admission.reason.partition(": ")
    wait_s = admission.wait_s + _RETRY_CHECK_S
    if await sender.store.postpone(message, wait_s, code=code, reason=reason):
        return
    made_at = await sender.store.accept(NewMessage(message, must_exist=False))
    if made_at is not None:
        await announce(ctx, sender.store, accepted(message, made_at))
        await sender.store.postpone(message, wait_s, code=code, reason=reason)


async def _may_claim(ctx: Context[Any], sender: Sender, message: OutMessage) -> bool:
    """Whether to claim the message again; False when there is nothing to do."""
    found = await sender.store.find(message.tenant_id, message.message_id)
    if found is None:
        # A program has published it: it gets a row now.
        made_at = await sender.store.accept(NewMessage(message, must_exist=False))
        if made_at is not None:
            await announce(ctx, sender.store, accepted(message, made_at))
        return True
    if found.fingerprint != message.content.fingerprint():
        raise Reject("MESSAGE_ID_REUSED", "the tenant has another message with this id")
    if found.status == "queued":
        return True
    if found.status != "sending":
        ctx.log.debug("the message is not queued", status=found.status)
        return False
    if found.lease_left_s > 0:
        raise Retry(
            "an attempt may still be running", delay_s=found.lease_left_s + 1.0, counts=False
        )
    return await give_up_attempt(ctx, sender, message, found.attempts) is not None


async def give_up_attempt(
    ctx: Context[Any], sender: Sender, message: Named, attempt: int
) -> Transition | None:
    """Say of an attempt without a result that it is unknown.

    The result is the transition to queued, where repeats are safe, so that another attempt is due.
    """
    receipt = Receipt("unknown", "ATTEMPT_LOST", "the host died during the attempt")
    moved = await _advance(sender, message, attempt, receipt)
    if moved is None:
        return None
    await announce(ctx, sender.store, moved)
    if moved.status == "queued":
        return moved
    _tell_unknown(ctx, moved, receipt)
    return None


async def _call(ctx: Context[Any], sender: Sender, claim: Claim, begun_s: float) -> Receipt:
    """The result of the call; an exception or the time limit makes it unknown."""
    loop, policy = asyncio.get_running_loop(), sender.policy
    if loop.time() - begun_s + policy.call_s > policy.lease_s:
        # This process was stopped since the claim: another may believe the attempt dead.
        return Receipt("failed", "CLAIM_TOO_OLD", "the host was stopped before the call")
    try:
        async with asyncio.timeout(policy.call_s):
            return await sender.provider.send(claim.message, claim.account)
    except TimeoutError:
        reason = f"the provider did not answer within {policy.call_s:g} s"
        return Receipt("unknown", "TIMEOUT", reason)
    except Exception as failure:
        ctx.log.exception("A provider's code failed, so the attempt's result is unknown")
        return Receipt("unknown", "PROVIDER_FAILED", f"the sender raised {type(failure).__name__}")


async def _settle(
    ctx: Context[Any], sender: Sender, claimed: Transition, receipt: Receipt, size_bytes: int
) -> None:
    """Record the result and raise what it means for the message in the queue."""
    if receipt.outcome == "unknown" and sender.provider.repeats_are_safe:
        receipt = replace(receipt, outcome="failed")
    policy = sender.policy
    used = max(claimed.attempts - claimed.free_attempts, ctx.attempt)
    is_busy = receipt.outcome == "busy" and not _is_older(claimed, policy.busy_for_s)
    is_last = receipt.outcome in {"failed", "busy"} and used >= policy.attempts and not is_busy
    moved = await _advance(
        sender,
        claimed,
        claimed.attempts,
        receipt,
        is_last=is_last,
        free_attempts=claimed.free_attempts + 1 if is_busy else None,
    )
    if moved is None:
        ctx.log.warning(
            "An attempt's result came after the message had moved on",
            message_id=claimed.message_id,
            attempt=claimed.attempts,
            outcome=receipt.outcome,
        )
        return
    await announce(ctx, sender.store, moved)
    if receipt.outcome == "unknown":
        _tell_unknown(ctx, moved, receipt)
    elif receipt.outcome == "refused" or is_last:
        letters = sender.letters
        if letters is None or letters.take(claimed.tenant_id, size_bytes):
            raise Reject(receipt.code, receipt.reason)
    elif receipt.outcome in {"failed", "busy"}:
        raise Retry(
            f"{receipt.code}: {receipt.reason}",
            delay_s=receipt.retry_after_s,
            counts=not is_busy,
        )


async def _advance(
    sender: Sender,
    message: Named,
    attempt: int,
    receipt: Receipt,
    *,
    is_last: bool = False,
    free_attempts: int | None = None,
) -> Transition | None:
    provider = sender.provider
    status: Status = _NEXT.get(receipt.outcome, "failed" if is_last else "queued")
    if status == "unknown" and provider.repeats_are_safe:
        status = "queued"
    check_in_s = {
        "queued": (receipt.retry_after_s or 0.0) + _RETRY_CHECK_S,
        "sent": provider.check_sent_after_s,
        "unknown": provider.look_up_after_s,
    }.get(status)
    return await sender.store.advance(
        Advance(
            message.tenant_id,
            message.message_id,
            attempt,
            status,
            ",".join(leaves(status)),
            receipt.outcome,
            receipt.code or None,
            receipt.reason or None,
            receipt.status_code,
            receipt.provider_id,
            check_in_s,
            free_attempts,
        )
    )


def _tell_unknown(ctx: Context[Any], moved: Transition, receipt: Receipt) -> None:
    ctx.log.warning(
        "Nobody knows whether the message was sent",
        message_id=moved.message_id,
        tenant_id=moved.tenant_id,
        attempt=moved.attempts,
        code=receipt.code,
        reason=receipt.reason,
    )


def _is_older(claimed: Transition, age_s: float) -> bool:
    return (datetime.now(UTC) - claimed.created_at).total_seconds() > age_s


def accepted(message: OutMessage, made_at: datetime) -> Transition:
    """The first transition of a message: accepted, and queued."""
    return Transition(
        message.tenant_id,
        message.message_id,
        message.kind,
        "queued",
        1,
        0,
        0,
        None,
        None,
        None,
        made_at,
        made_at,
    )


__all__ = [
    "DEFAULT_TENANT",
    "Policy",
    "Sender",
    "accepted",
    "deliver_message",
    "give_up_attempt",
    "identify",
]
