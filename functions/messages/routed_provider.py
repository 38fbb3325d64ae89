"""Sends messages of one kind through provider accounts: when, through which, and what if one fails.

Checked in this order before an attempt begins, so that none of it uses up an attempt: quiet hours,
an account that works, the tenant's rate.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Generic, Protocol, TypeVar

import structlog

from functions.messages.account_health import AccountHealth, Verdict
from functions.messages.accounts import Account, Recipient, candidates
from functions.messages.contents import OutMessage
from functions.messages.policies import Policies, Policy
from functions.messages.provider import Admission, Receipt
from functions.messages.tenant_rate import RateLimit
from functions.messages.tenant_turns import TenantTurns, Turn

NO_ACCOUNT_S = 60.0
QUIET_SPREAD_S = 60.0
"""Messages that waited for the end of quiet hours are spread over this time, unless high."""
FAILOVER_S = 0.5
_MAX_OPEN = 1000


@dataclass(frozen=True, slots=True)
class Sending:
    """The result of an attempt, and what it says of the account."""

    receipt: Receipt
    verdict: Verdict = "works"


class AccountClient(Protocol):
    """Sends through one account."""

    async def send(self, message: OutMessage) -> Sending:
        """Make one attempt."""

    async def close(self) -> None:
        """Close the connections."""


Client = TypeVar("Client", bound=AccountClient)


class RoutedProvider(Generic[Client]):
    """A provider that chooses an account for each message.

    Args:
        policies: what applies to each tenant.
        turns: keeps the tenants' rates.
        connect: makes the client of an account.
        log: where an account's failure is named.
        default_account: the account of the manifest, used after those of the table.
        default_rate: the rate of a tenant without one of its own.
        remedy: what a person does when there is no account.
        repeats_are_safe, check_sent_after_s, look_up_after_s: as in `Provider`.
        on_close: closes what the clients share.
    """

    def __init__(
        self,
        policies: Policies,
        turns: TenantTurns,
        connect: Callable[[Account], Awaitable[Client]],
        log: structlog.stdlib.BoundLogger,
        *,
        default_account: Account | None = None,
        default_rate: RateLimit | None = None,
        remedy: str = "create one",
        repeats_are_safe: bool = False,
        check_sent_after_s: float | None = None,
        look_up_after_s: float | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.repeats_are_safe = repeats_are_safe
        self.check_sent_after_s = check_sent_after_s
        self.look_up_after_s = look_up_after_s
        self._on_close = on_close
        self._policies = policies
        self._turns = turns
        self._connect = connect
        self._log = log
        self._default_account = default_account
        self._default_rate = default_rate
        self._remedy = remedy
        self._health = AccountHealth()
        self._clients: dict[str, tuple[str, Client]] = {}
        self._connecting = asyncio.Lock()
        self._time = asyncio.get_running_loop().time

    async def admit(self, message: OutMessage) -> Admission:
        """Decide whether the message may be sent now, and through which account."""
        policy = await self._policies.of(message.tenant_id)
        is_high = message.content.priority == "high"
        now = datetime.now(UTC)
        recipient = recipient_of(message)
        if until := policy.quiet_until(recipient, now, is_high=is_high):
            spread_s = 0.0 if is_high else random.uniform(0, QUIET_SPREAD_S)  # noqa: S311 - not a secret
            return Admission(
                wait_s=(until - now).total_seconds() + spread_s,
                reason=f"QUIET_HOURS: quiet hours of the recipient until {until:%Y-%m-%dT%H:%MZ}",
            )
        account = self._choose(policy, recipient)
        if isinstance(account, Admission):
            return account
        if (limit := policy.rate or self._default_rate) is not None:
            turn = Turn(message.tenant_id, message.message_id, limit, is_high)
            if wait_s := await self._turns.take(turn):
                return Admission(
                    wait_s=wait_s, reason="TENANT_RATE: the tenant sends as many as it may"
                )
        return Admission(account.name)

    async def send(self, message: OutMessage, account: str) -> Receipt:
        """Make one attempt through the account."""
        found = await self.account(message.tenant_id, account)
        if found is None:
            return Receipt(
                "busy", "ACCOUNT_GONE", "the account was removed", retry_after_s=FAILOVER_S
            )
        sender = message.content.sender if hasattr(message.content, "sender") else None
        if sender is not None and not found.allows_sender(sender):
            return Receipt(
                "refused", "SENDER_NOT_ALLOWED", "the account does not send for this sender"
            )
        try:
            client = await self._client(found)
        except ValueError as invalid:
            # Nothing was sent: the next account is tried, and a person corrects this one.
            self._health.end(account, "broken", self._time())
            self._log.error(
                "A provider account has a configuration that cannot be used",
                account=account,
                error_type=type(invalid).__name__,
            )
            reason = "the account's configuration cannot be used"
            return Receipt("busy", "ACCOUNT_INVALID", reason, retry_after_s=FAILOVER_S)
        self._health.begin(account, self._time())
        sending = await client.send(message)
        self._health.end(account, sending.verdict, self._time())
        receipt = sending.receipt
        if sending.verdict == "broken":
            self._log.warning(
                "A provider account cannot be used", account=account, code=receipt.code
            )
            if receipt.outcome in {"failed", "busy"}:
                # Nothing was sent, and it is not the message's fault: the next account is tried.
                return replace(receipt, outcome="busy", retry_after_s=FAILOVER_S)
        return receipt

    async def account(self, tenant_id: str, name: str) -> Account | None:
        """The account of this name, if it may send for the tenant."""
        accounts = self._accounts(await self._policies.of(tenant_id))
        return next((each for each in accounts if each.name == name), None)

    async def client_of(self, name: str) -> Client | None:
        """The client of an account, to look up what it has sent; None when the account is gone."""
        default = self._default_account
        if default is not None and default.name == name:
            return await self._client(default)
        found = await self._policies.account(name)
        return None if found is None else await self._client(found)

    async def close(self) -> None:
        """Stop to listen, and close all connections."""
        await self._policies.stop()
        await self._turns.close()
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.close() for _, client in clients.values()))
        if self._on_close is not None:
            await self._on_close()

    def _accounts(self, policy: Policy) -> tuple[Account, ...]:
        default = self._default_account
        return policy.accounts if default is None else (*policy.accounts, default)

    def _choose(self, policy: Policy, recipient: Recipient) -> Account | Admission:
        accounts = candidates(self._accounts(policy), recipient)
        if not accounts:
            return Admission(
                wait_s=NO_ACCOUNT_S,
                reason=f"NO_ACCOUNT: no provider account sends this message; {self._remedy}",
            )
        waits_s = [self._health.wait_s(each.name, self._time()) for each in accounts]
        for account, wait_s in zip(accounts, waits_s, strict=True):
            if not wait_s:
                return account
        return Admission(
            wait_s=min(waits_s) + random.uniform(0.1, 2.0),  # noqa: S311 - not a secret
            reason="ACCOUNTS_PAUSED: every provider account for this message failed lately",
        )

    async def _client(self, account: Account) -> Client:
        known = self._clients.get(account.name)
        if known is not None and known[0] == account.version:
            return known[1]
        async with self._connecting:
            known = self._clients.get(account.name)
            if known is not None and known[0] == account.version:
                return known[1]
            if known is not None:
                # Its calls may still run: it closes its idle connections, and they theirs.
                await known[1].close()
            elif len(self._clients) >= _MAX_OPEN:
                _, oldest = self._clients.pop(next(iter(self._clients)))
                await oldest.close()
            client = await self._connect(account)
            self._clients[account.name] = account.version, client
            return client


def recipient_of(message: OutMessage) -> Recipient:
    """What the choice of an account knows of a message."""
    number = message.content.to if message.kind == "sms" else ""
    return Recipient(message.tenant_id, message.content.region, number)


__all__ = ["AccountClient", "RoutedProvider", "Sending", "recipient_of"]
