"""Sends text messages, looks up attempts of unknown result, and asks whether messages arrived."""

from datetime import datetime
from typing import Annotated

import httpx
from pydantic import Field, SecretStr, StringConstraints

from functions.messages.account_configs import SmsAccount
from functions.messages.accounts import Account
from functions.messages.contents import OutMessage, QueuedSms
from functions.messages.delivery import Sender, deliver_message
from functions.messages.letter_budget import LetterBudget
from functions.messages.provider import Admission, Receipt
from functions.messages.routed_provider import RoutedProvider, Sending
from functions.messages.sending import (
    SendingSettings,
    close_sender,
    default_account,
    open_provider,
)
from functions.messages.settling import Absent, Unclear, settle_due
from functions.messages.store import MessageStore
from functions.messages.twilio import LookUpFailed, TwilioAccount, TwilioClient
from runtime import Context, Event

_ACCOUNTS_FAULT = frozenset({"ACCOUNT_INVALID", "HTTP_401", "HTTP_403", "HTTP_404"}) | {
    f"TWILIO_{code}" for code in (20003, 20005, 20404, 14107, 30001, 63038)
}
_REMEDY = "create one, or set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"


class SmsSettings(SendingSettings):
    """Settings of text messages; the first four are the account for messages that have no other.

    Attributes:
        account_sid: the account of Twilio.
        auth_token: the account's token.
        sender: number, name or messaging service of messages that state none.
        base_url: where the API is.
        call_s: time limit of one request.
        look_up_after_s: seconds after which an attempt of unknown result is looked up. The provider
            lists a message some seconds after it has accepted it.
        resend_absent: whether a message that the provider does not list is sent again; else a
            person must settle it.
        check_sent_after_s: seconds after which the state of a sent message is looked up first.
    """

    account_sid: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{0,64}$")] = ""
    auth_token: SecretStr | None = None
    sender: Annotated[str, StringConstraints(max_length=64)] = ""
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")] = (
        "https://api.twilio.com"
    )
    call_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    look_up_after_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    resend_absent: bool = True
    check_sent_after_s: Annotated[float, Field(gt=0, le=86_400)] = 10.0

    @property
    def account(self) -> Account | None:
        """The account of the manifest; None without an account and its token."""
        if not self.account_sid or self.auth_token is None:
            return None
        config = {
            "account_sid": self.account_sid,
            "auth_token": self.auth_token.get_secret_value(),
            "sender": self.sender,
            "base_url": self.base_url,
        }
        return default_account("sms", config, name=self.account_sid, senders=self.senders)


# The name under which the host looks for a function's settings.
Settings = SmsSettings


class SmsClient:
    """Sends and looks up through one account of Twilio."""

    def __init__(self, client: TwilioClient, account: TwilioAccount) -> None:
        self.client = client
        self.account = account

    async def send(self, message: OutMessage) -> Sending:
        """Send a message by the account."""
        receipt = await self.client.send(message, self.account)
        if receipt.outcome == "busy":
            return Sending(receipt, "broken" if receipt.code in _ACCOUNTS_FAULT else "failed")
        is_fault = receipt.outcome in {"failed", "unknown"}
        return Sending(receipt, "failed" if is_fault else "works")

    async def close(self) -> None:
        """Nothing to close: the HTTP client is the host's."""


class SmsProvider:
    """Twilio as the provider of text messages."""

    def __init__(self, routed: RoutedProvider[SmsClient], settings: SmsSettings) -> None:
        self.repeats_are_safe = False
        self.check_sent_after_s = settings.check_sent_after_s
        self.look_up_after_s = settings.look_up_after_s
        self._routed = routed
        self._resend_absent = settings.resend_absent

    async def admit(self, message: OutMessage) -> Admission:
        """Whether the message may be sent now, and through which account."""
        return await self._routed.admit(message)

    async def send(self, message: OutMessage, account: str) -> Receipt:
        """Send a message by the account."""
        return await self._routed.send(message, account)

    async def close(self) -> None:
        """Close what the accounts have opened."""
        await self._routed.close()

    async def find_state(self, provider_id: str, account: str) -> Receipt | None:
        """What became of a sent message; None while it is on its way."""
        client = await self._client(account)
        return await client.client.find_state(provider_id, client.account)

    async def look_up(
        self, message: OutMessage, account: str, began_at: datetime, store: MessageStore
    ) -> Receipt | Absent | Unclear:
        """Whether the provider has accepted the message in an attempt that began then.

        The provider takes no id of ours, so the message is recognized by recipient, text and time,
        among those that no other message of ours is known to be.
        """
        client = await self._client(account)
        listed = await client.client.list_sent(message, client.account, began_at)
        taken = await store.known_provider_ids([one.provider_id for one in listed])
        free = [one for one in listed if one.provider_id not in taken]
        same = [one for one in free if one.is_this]
        if not same:
            # Another text to this recipient that nobody knows may be ours, changed by the provider.
            if free or not self._resend_absent:
                return Unclear("the provider lists no message with this text")
            return Absent()
        rivals = await store.count_rivals(message)
        if len(same) <= rivals:
            return Unclear("several messages have this recipient and this text")
        return same[-1].receipt

    async def _client(self, name: str) -> SmsClient:
        client = await self._routed.client_of(name)
        if client is None:
            raise LookUpFailed("the account of the message is not configured any more")
        return client


async def start(ctx: Context[Sender]) -> Sender:
    """Open the store and the provider."""
    settings: SmsSettings = ctx.settings
    http: httpx.AsyncClient = ctx.http

    async def connect(account: Account) -> SmsClient:
        config = account.config
        if account.name != settings.account_sid:
            SmsAccount.model_validate(config)
        twilio = TwilioAccount(
            config["account_sid"],
            SecretStr(config["auth_token"]),
            config["sender"],
            config.get("base_url", "https://api.twilio.com").rstrip("/"),
        )
        return SmsClient(TwilioClient(http, settings.call_s), twilio)

    routed = await open_provider(ctx, "sms", connect, account=settings.account, remedy=_REMEDY)
    provider = SmsProvider(routed, settings)
    letters = LetterBudget(ctx.log)
    return Sender(MessageStore(ctx.postgres), provider, settings.policy, letters)


async def stop(ctx: Context[Sender]) -> None:
    """Wait for what was begun."""
    await close_sender(ctx.state)


async def send_sms(event: Event[QueuedSms], ctx: Context[Sender]) -> None:
    """Send a text message."""
    await deliver_message(event, ctx, ctx.state)


async def settle_sms(ctx: Context[Sender]) -> None:
    """Look up attempts of unknown result, and whether sent messages have arrived."""
    await settle_due(ctx, ctx.state, "sms")


__all__ = ["SmsSettings", "send_sms", "settle_sms", "start", "stop"]
