"""Endpoints that accept messages over HTTP, and answer at once.

The row is written first, then the message is put into its queue. If the process dies between the
two, or NATS is away, the message is put into its queue when its row is looked at, so a message that
was answered 202 is never lost. A repeat under the same idempotency key is answered like the first.
"""

import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.identifiers import TenantId
from functions.messages.announcing import enqueue_accepted
from functions.messages.contents import (
    Content,
    EmailContent,
    Kind,
    OutMessage,
    SmsContent,
    WebhookContent,
)
from functions.messages.delivery import accepted
from functions.messages.lifecycle import Status
from functions.messages.store import MessageStore, NewMessage
from functions.messages.waiting import WaitingBound
from runtime import Context, Event, Reject

_STRICT = ConfigDict(extra="forbid")


class SendSms(SmsContent):
    """A text message to send."""

    model_config = _STRICT

    tenant_id: TenantId


class SendEmail(EmailContent):
    """An email to send."""

    model_config = _STRICT

    tenant_id: TenantId


class SendWebhook(WebhookContent):
    """A webhook to send."""

    model_config = _STRICT

    tenant_id: TenantId


class Accepted(BaseModel):
    """The answer to an accepted message: `status` is what it was then."""

    message_id: str
    tenant_id: str
    kind: Kind
    status: Status
    created_at: datetime


class AcceptSettings(BaseModel):
    """Settings of the endpoints that accept messages.

    Attributes:
        max_waiting: how many messages of one tenant may wait to be sent; more are refused with 429.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_waiting: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000


# The name under which the host looks for a function's settings.
Settings = AcceptSettings


@dataclass(frozen=True, slots=True)
class Accepting:
    """The state of an endpoint that accepts messages."""

    store: MessageStore
    bound: WaitingBound


async def start(ctx: Context[Accepting]) -> Accepting:
    """Open the store."""
    bound = WaitingBound(ctx.postgres, ctx.settings.max_waiting)
    return Accepting(MessageStore(ctx.postgres), bound)


async def stop(ctx: Context[Accepting]) -> None:
    """Wait for what was begun."""
    await ctx.state.store.close()


async def accept_sms(event: Event[SendSms], ctx: Context[Accepting]) -> Accepted:
    """Accept a text message."""
    return await _accept(event, ctx)


async def accept_email(event: Event[SendEmail], ctx: Context[Accepting]) -> Accepted:
    """Accept an email."""
    return await _accept(event, ctx)


async def accept_webhook(event: Event[SendWebhook], ctx: Context[Accepting]) -> Accepted:
    """Accept a webhook."""
    return await _accept(event, ctx)


async def _accept(event: Event[Any], ctx: Context[Accepting]) -> Accepted:
    tenant_id: str = event.data.tenant_id
    content: Content = event.data
    key = event.headers.get("Idempotency-Key")
    if key is not None and not 1 <= len(key) <= 255:  # noqa: PLR2004 - as the gateway
        raise Reject("INVALID_IDEMPOTENCY_KEY", "Idempotency-Key may hold 1 to 255 characters.")
    store = ctx.state.store
    message = OutMessage(tenant_id, _make_id(), content)
    if not await ctx.state.bound.take(tenant_id):
        # A repeat of a request is no further message.
        row = None if key is None else await store.find_by_key(tenant_id, key)
        if row is None:
            reason = "Too many messages of the tenant wait to be sent."
            raise Reject("TOO_MANY_WAITING", reason, status=429)
        return await _repeated(store, message, key)
    created_at = await store.accept(NewMessage(message, key))
    if created_at is None:
        return await _repeated(store, message, key)
    await enqueue_accepted(ctx, store, message, accepted(message, created_at))
    return _answer(message, message.message_id, created_at)


async def _repeated(store: MessageStore, message: OutMessage, key: str | None) -> Accepted:
    """The answer to a repeat; or why the message was not accepted.

    Raises:
        Reject: the key is that of another message, or the tenant may not send.
    """
    row = None if key is None else await store.find_by_key(message.tenant_id, key)
    if row is not None:
        if row["fingerprint"] == message.content.fingerprint() and row["kind"] == message.kind:
            return _answer(message, row["message_id"], row["created_at"])
        # Source: the IETF draft "The Idempotency-Key HTTP Header Field", section 2.7.
        reason = "The Idempotency-Key was used for another message."
        raise Reject("IDEMPOTENCY_KEY_REUSED", reason, status=422)
    if await store.tenant_status(message.tenant_id) is None:
        raise Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404)
    raise Reject("TENANT_SUSPENDED", "The tenant is suspended.", status=403)


def _answer(message: OutMessage, message_id: str, created_at: datetime) -> Accepted:
    return Accepted(
        message_id=message_id,
        tenant_id=message.tenant_id,
        kind=message.kind,
        status="queued",
        created_at=created_at,
    )


def _make_id() -> str:
    """A random id that begins with the time, so that new rows stand together in the index."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


__all__ = ["accept_email", "accept_sms", "accept_webhook", "start", "stop"]
