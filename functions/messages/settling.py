"""Looks at messages whose time has come: attempts that died, unknown results, sent messages.

A message of unknown result is looked up at its provider. Found: it is sent. Certainly absent: it is
sent again. Neither: the look-up is made again, with growing pauses for a day; then a person must
settle it, by `resend` or `mark`.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from functions.messages.announcing import announce, enqueue
from functions.messages.contents import Kind, OutMessage, read_content
from functions.messages.delivery import Sender, give_up_attempt
from functions.messages.lifecycle import Status, leaves
from functions.messages.provider import Receipt
from functions.messages.store import (
    UNPUBLISHED_CHECK_S,
    Advance,
    Due,
    MessageStore,
    Transition,
)
from runtime import Context

_AT_A_TIME = 200
_SIDE_BY_SIDE = 8
_FIRST_PAUSE_S = 10.0
_LONGEST_PAUSE_S = 3600.0
# Pauses of 10 s, 20 s … 42 min, then 1 h: a little more than a day, and three days.
_MAX_LOOK_UPS = 32
_MAX_CHECKS = 80


@dataclass(frozen=True, slots=True)
class Absent:
    """The provider has certainly not accepted the message."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """Nobody can say whether the provider has accepted the message."""

    reason: str


@runtime_checkable
class LookUp(Protocol):
    """A provider that can be asked what became of a message."""

    async def find_state(self, provider_id: str, account: str) -> Receipt | None:
        """What became of a sent message; None while it is on its way."""

    async def look_up(
        self, message: OutMessage, account: str, began_at: datetime, store: MessageStore
    ) -> Receipt | Absent | Unclear:
        """Whether the provider has accepted the message in an attempt that began then."""


async def settle_due(ctx: Context[Any], sender: Sender, kind: Kind) -> None:
    """Look at all messages of a kind whose time has come."""
    free = asyncio.Semaphore(_SIDE_BY_SIDE)
    recipients: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def settle(due: Due) -> None:
        # One recipient's one after another: each may take a message that the next must not.
        async with recipients[due.recipient], free:
            try:
                await _settle(ctx, sender, due)
            except Exception as failure:  # noqa: BLE001 - the others must not wait for it
                ctx.log.warning(
                    "A message could not be looked up",
                    message_id=due.message_id,
                    tenant_id=due.tenant_id,
                    error_type=type(failure).__name__,
                    reason=str(failure)[:200],
                )
                await _wait_longer(ctx, sender.store, due)

    while due := await sender.store.due(kind, ["sending", "unknown", "sent"], _AT_A_TIME):
        await asyncio.gather(*(settle(each) for each in due))
        if len(due) < _AT_A_TIME:
            return


async def _settle(ctx: Context[Any], sender: Sender, due: Due) -> None:
    if due.status == "sending":
        moved = await give_up_attempt(ctx, sender, due, due.attempts)
        if moved is not None:
            await enqueue(ctx, sender.store, _message(due), moved)
        return
    provider = sender.provider
    if not isinstance(provider, LookUp) or due.provider is None:
        await sender.store.look_again(due, None)
    elif due.status == "unknown":
        verdict = await provider.look_up(
            _message(due), due.provider, due.began_at or due.updated_at, sender.store
        )
        await _apply(ctx, sender, due, verdict)
    else:
        receipt = None
        if due.provider_id is not None:
            receipt = await provider.find_state(due.provider_id, due.provider)
        if receipt is None:
            await _wait_longer(ctx, sender.store, due)
        else:
            await _advance(ctx, sender, due, receipt)


async def _apply(
    ctx: Context[Any], sender: Sender, due: Due, verdict: Receipt | Absent | Unclear
) -> None:
    if isinstance(verdict, Unclear):
        ctx.log.info(
            "A look-up did not tell whether the message was sent",
            message_id=due.message_id,
            tenant_id=due.tenant_id,
            reason=verdict.reason,
        )
        await _wait_longer(ctx, sender.store, due)
    elif isinstance(verdict, Receipt):
        await _advance(ctx, sender, due, verdict)
    elif due.attempts - due.free_attempts >= sender.policy.attempts:
        reason = "the provider has not accepted it, and no attempt is left"
        await _move(ctx, sender, due, "failed", error_code="NOT_ACCEPTED", reason=reason)
    else:
        reason = "the provider has not accepted it"
        moved = await _move(ctx, sender, due, "queued", error_code="NOT_ACCEPTED", reason=reason)
        if moved is not None:
            await enqueue(ctx, sender.store, _message(due), moved)


async def _advance(ctx: Context[Any], sender: Sender, due: Due, receipt: Receipt) -> None:
    """Take over what the provider says of a message that it has."""
    status: Status = "failed"
    if receipt.outcome in {"sent", "delivered"}:
        status = "delivered" if receipt.outcome == "delivered" else "sent"
    await _move(
        ctx,
        sender,
        due,
        status,
        error_code=receipt.code or None,
        reason=receipt.reason or None,
        provider_id=receipt.provider_id,
    )


async def _move(
    ctx: Context[Any],
    sender: Sender,
    due: Due,
    status: Status,
    *,
    error_code: str | None = None,
    reason: str | None = None,
    provider_id: str | None = None,
) -> Transition | None:
    check_in_s = {
        "queued": UNPUBLISHED_CHECK_S,
        "sent": sender.provider.check_sent_after_s,
    }.get(status)
    moved = await sender.store.advance(
        Advance(
            due.tenant_id,
            due.message_id,
            due.attempts,
            status,
            ",".join(leaves(status)),
            error_code=error_code,
            reason=reason,
            provider_id=provider_id,
            check_in_s=check_in_s,
        )
    )
    if moved is not None:
        await announce(ctx, sender.store, moved)
    return moved


async def _wait_longer(ctx: Context[Any], store: MessageStore, due: Due) -> None:
    """Look again after a longer pause, or never: then the row stays as it is."""
    most = _MAX_LOOK_UPS if due.status == "unknown" else _MAX_CHECKS
    if due.checks < most:
        pause_s = min(_FIRST_PAUSE_S * 2 ** min(due.checks, 16), _LONGEST_PAUSE_S)
        await store.look_again(due, pause_s)
        return
    await store.look_again(due, None)
    if due.status == "unknown":
        ctx.log.error(
            "A person must settle a message: nobody knows whether it was sent",
            message_id=due.message_id,
            tenant_id=due.tenant_id,
        )


def _message(due: Due) -> OutMessage:
    return OutMessage(due.tenant_id, due.message_id, read_content(due.kind, due.content))


__all__ = ["Absent", "LookUp", "Unclear", "settle_due"]
