"""Sends the email of the stream EMAIL through SMTP servers."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from functions.messages import email_sender
from functions.messages.account_configs import SmtpAccount
from functions.messages.contents import QueuedEmail
from functions.messages.delivery import Sender, deliver_message
from functions.messages.letter_budget import LetterBudget
from functions.messages.sending import (
    SendingSettings,
    close_sender,
    default_account,
    open_provider,
)
from functions.messages.settling import settle_due
from functions.messages.store import MessageStore
from runtime import Context, Event

_REMEDY = "create one, or set SMTP_HOST and SMTP_SENDER"


class EmailSettings(SendingSettings):
    """Settings of email; `host` and what follows are the account for messages that have no other.

    Attributes:
        host: the SMTP server; empty for no such account.
        security: `starttls` and `tls` never go on without a verified, encrypted connection.
        sender: the address to send from, of messages that state none.
        ca: PEM certificates to trust in place of the system's.
        max_connections: connections at a time from one process.
    """

    host: str = ""
    port: Annotated[int, Field(ge=1, le=65_535)] = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str = ""
    password: SecretStr | None = None
    sender: str = ""
    sender_name: str = ""
    ca: str = ""
    max_connections: Annotated[int, Field(ge=1, le=100)] = 4

    @property
    def account(self) -> dict[str, Any] | None:
        """The configuration of the account; None without a host.

        Raises:
            ValueError: the settings are no account.
        """
        if not self.host:
            return None
        given = {
            "host": self.host,
            "port": self.port,
            "security": self.security,
            "username": self.username or None,
            "password": self.password,
            "sender": self.sender,
            "sender_name": self.sender_name,
            "ca": self.ca or None,
            "max_connections": self.max_connections,
        }
        SmtpAccount.model_validate(given)
        return given


# The name under which the host looks for a function's settings.
Settings = EmailSettings


async def start(ctx: Context[Sender]) -> Sender:
    """Make what all emails share."""
    connect = partial(email_sender.connect, pool=ctx.postgres)
    settings: EmailSettings = ctx.settings
    account = default_account("email", settings.account, senders=settings.senders)
    provider = await open_provider(ctx, "email", connect, account=account, remedy=_REMEDY)
    letters = LetterBudget(ctx.log)
    return Sender(MessageStore(ctx.postgres), provider, settings.policy, letters)


async def stop(ctx: Context[Sender]) -> None:
    """Close the connections."""
    await close_sender(ctx.state)


async def settle_emails(ctx: Context[Sender]) -> None:
    """Say of attempts whose host has died that their result is unknown."""
    await settle_due(ctx, ctx.state, "email")


async def send_email(event: Event[QueuedEmail], ctx: Context[Sender]) -> None:
    """Send one email, or note what has become of it."""
    await deliver_message(event, ctx, ctx.state)
