"""Sends email through the SMTP server of a provider account."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import asyncpg

from functions.domain.mail.composing import File, Mail, compose, make_message_id
from functions.domain.mail.smtp import Refused, SmtpClient, SmtpFault
from functions.domain.named_sql import read_queries
from functions.messages.account_configs import SmtpAccount
from functions.messages.accounts import Account
from functions.messages.contents import EmailContent, OutMessage
from functions.messages.provider import Receipt
from functions.messages.routed_provider import Sending

_QUERIES = read_queries(Path(__file__).with_name("policies.sql"))

RecipientOutcome = Literal["accepted", "waiting", "refused"]


@dataclass(frozen=True, slots=True)
class _Known:
    """What an earlier attempt has found out about a recipient."""

    outcome: RecipientOutcome
    reason: str


class EmailClient:
    """Sends through one account; each recipient gets an email once, however many attempts it takes.

    The server decides of each recipient by itself. Those that it has taken are not sent to again,
    and those that it refuses for good are not asked for again.
    """

    def __init__(self, account: SmtpAccount, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._account = account
        self._pool = pool
        self._smtp = SmtpClient(account.server())

    async def send(self, message: OutMessage) -> Sending:
        """Send to the recipients that neither have it nor were refused."""
        content: EmailContent = message.content
        known = await self._known(message)
        everybody = dict.fromkeys([*content.to, *content.cc, *content.bcc])
        left = [each for each in everybody if each not in known or known[each].outcome == "waiting"]
        sender = content.sender or self._account.sender
        try:
            data = compose(self._mail(message, content, sender))
        except ValueError:
            return Sending(Receipt("refused", "EMAIL_INVALID", "the email cannot be composed"))
        if not left:
            return Sending(_summarize(everybody, known))
        try:
            sent = await self._smtp.send(sender, left, data)
        except SmtpFault as fault:
            return _of_fault(fault)
        now = {each: _Known("accepted", "") for each in sent.accepted} | {
            each: _Known("refused" if why.is_permanent else "waiting", why.reason)
            for each, why in sent.refused.items()
        }
        if sent.refused or known:
            await self._write(message, now, sent.refused)
        receipt = _summarize(everybody, known | now, reply=sent.reply)
        return Sending(receipt)

    async def close(self) -> None:
        """Close the connections."""
        await self._smtp.close()

    def _mail(self, message: OutMessage, content: EmailContent, sender: str) -> Mail:
        return Mail(
            make_message_id(message.tenant_id, message.message_id, sender),
            message.accepted_at or datetime.now(UTC),
            sender,
            content.to,
            content.subject,
            sender_name=self._account.sender_name if sender == self._account.sender else "",
            cc=content.cc,
            reply_to=content.reply_to,
            text=content.text,
            html=content.html,
            files=[
                File(each.filename, each.content_type, each.data) for each in content.attachments
            ],
        )

    async def _known(self, message: OutMessage) -> dict[str, _Known]:
        rows = await self._pool.fetch(_QUERIES["recipients"], message.tenant_id, message.message_id)
        return {row["address"]: _Known(row["outcome"], row["reason"] or "") for row in rows}

    async def _write(
        self, message: OutMessage, known: Mapping[str, _Known], refused: Mapping[str, Refused]
    ) -> None:
        addresses = sorted(known)
        statuses = [refused[each].status_code if each in refused else None for each in addresses]
        await self._pool.execute(
            _QUERIES["write_recipients"],
            *(message.tenant_id, message.message_id, addresses),
            [known[each].outcome for each in addresses],
            statuses,
            [known[each].reason or None for each in addresses],
        )


def _summarize(
    everybody: Iterable[str], known: Mapping[str, _Known], *, reply: str = ""
) -> Receipt:
    """The result for the whole email, from what is known of each recipient."""
    outcomes = [known[each].outcome for each in everybody]
    accepted, waiting = outcomes.count("accepted"), outcomes.count("waiting")
    whole = f"{accepted} of {len(outcomes)} recipients"
    if waiting:
        return Receipt(
            "failed", "RECIPIENTS_WAITING", f"the mail server took it for {whole} so far"
        )
    if not accepted:
        return Receipt("refused", "RECIPIENTS_REFUSED", "the mail server refused every recipient")
    if accepted < len(outcomes):
        return Receipt(
            "sent",
            "SOME_RECIPIENTS_REFUSED",
            f"the mail server took it for {whole}",
            status_code=250,
            provider_id=reply or None,
        )
    return Receipt("sent", status_code=250, provider_id=reply or None)


def _of_fault(fault: SmtpFault) -> Sending:
    receipt = Receipt(
        "unknown" if fault.is_unknown else "refused" if fault.is_permanent else "failed",
        fault.code,
        fault.reason,
        status_code=fault.status_code,
    )
    if fault.is_of_server:
        return Sending(replace(receipt, outcome="failed"), "broken")
    is_failure = fault.is_unknown or fault.is_of_recipients
    return Sending(receipt, "failed" if is_failure else "works")


async def connect(account: Account, pool: "asyncpg.Pool[asyncpg.Record]") -> EmailClient:
    """The client of an account.

    Raises:
        ValueError: the account's configuration is not usable.
    """
    return EmailClient(SmtpAccount.model_validate(account.config), pool)


__all__ = ["EmailClient", "connect"]
