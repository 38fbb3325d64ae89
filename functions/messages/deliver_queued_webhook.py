"""Delivers the webhooks of the stream WEBHOOKS: those to deliver, and those to try once more."""

from pathlib import Path
from typing import Any

from pydantic import SecretStr

from functions.domain.named_sql import read_queries
from functions.messages.account_configs import WebhookAccount
from functions.messages.accounts import Account
from functions.messages.announcing import announce
from functions.messages.contents import QueuedWebhook
from functions.messages.delivery import Policy, Sender, deliver_message, identify
from functions.messages.letter_budget import LetterBudget
from functions.messages.sending import (
    SLACK_S,
    SendingSettings,
    close_sender,
    default_account,
    open_provider,
)
from functions.messages.settling import settle_due
from functions.messages.store import UNPUBLISHED_CHECK_S, Advance, MessageStore
from functions.messages.webhook_client import Endpoints, WebhookClient
from functions.outbound.webhook_sender import OVERTIME_S, WebhookSettings, open_sender
from runtime import Context, Event

RETRY_SUBJECT = "webhooks.retry"

_QUERIES = read_queries(Path(__file__).with_name("endpoints.sql"))
_REMEDY = "create one"


class QueuedWebhookSettings(SendingSettings, WebhookSettings):
    """Settings of queued webhooks; see those of the routes' webhooks for the endpoints' bounds.

    Attributes:
        secret: signs the webhooks of tenants without an account; without it these are not signed.
    """

    secret: SecretStr | None = None

    @property
    def policy(self) -> Policy:
        """The bounds of sending: the time limit of a call follows from that of a request."""
        return Policy(self.attempts, self.timeout_s + OVERTIME_S + SLACK_S, self.busy_for_s)

    @property
    def account(self) -> dict[str, Any]:
        """The configuration of the account for tenants without one of their own.

        Raises:
            ValueError: the secret is not one.
        """
        if self.secret is None or not self.secret.get_secret_value():
            return {}
        WebhookAccount(secret=self.secret)
        return {"secret": self.secret.get_secret_value()}


# The name under which the host looks for a function's settings.
Settings = QueuedWebhookSettings


async def start(ctx: Context[Sender]) -> Sender:
    """Make what all webhooks share."""
    settings: QueuedWebhookSettings = ctx.settings
    endpoints = Endpoints(await open_sender(settings), settings)

    async def connect(account: Account) -> WebhookClient:
        return WebhookClient(account, endpoints)

    provider = await open_provider(
        ctx,
        "webhook",
        connect,
        account=default_account("webhook", settings.account),
        remedy=_REMEDY,
        # `webhook-id` is the same on every attempt: a receiver recognizes a repeat.
        repeats_are_safe=True,
        on_close=endpoints.sender.aclose,
    )
    letters = LetterBudget(ctx.log)
    return Sender(MessageStore(ctx.postgres), provider, settings.policy, letters)


async def stop(ctx: Context[Sender]) -> None:
    """Close the connections."""
    await close_sender(ctx.state)


async def deliver_queued_webhook(event: Event[QueuedWebhook], ctx: Context[Sender]) -> None:
    """Deliver one webhook; one of `webhooks.retry` that was given up gets five attempts more."""
    if event.subject == RETRY_SUBJECT:
        await _requeue(event, ctx)
    await deliver_message(event, ctx, ctx.state)


async def settle_webhooks(ctx: Context[Sender]) -> None:
    """Make attempts again whose host has died: the receiver knows a repeat by its id."""
    await settle_due(ctx, ctx.state, "webhook")


async def _requeue(event: Event[QueuedWebhook], ctx: Context[Sender]) -> None:
    """Queue a webhook again that was given up before this message was published.

    One that was given up later has had the attempts that this message asks for: then this is a
    redelivery.
    """
    message = identify(event)
    row = await ctx.postgres.fetchrow(
        _QUERIES["given_up"],
        *(message.tenant_id, message.message_id),
        *(message.content.fingerprint(), event.stored_at),
    )
    if row is None:
        return
    moved = await ctx.state.store.advance(
        Advance(
            message.tenant_id,
            message.message_id,
            row["attempts"] or None,
            "queued",
            "failed,refused",
            check_in_s=UNPUBLISHED_CHECK_S,
            free_attempts=row["attempts"],
        )
    )
    if moved is not None:
        await announce(ctx, ctx.state.store, moved)


__all__ = ["QueuedWebhookSettings", "deliver_queued_webhook", "settle_webhooks", "start", "stop"]
