"""Looks up the accounts, quiet hours and rates that apply to a tenant, cached until they change."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import orjson
import structlog

from functions.domain.cache import Cache
from functions.domain.changes import ChangeListener
from functions.domain.named_sql import read_queries
from functions.domain.secret_box import SecretBox, Unreadable
from functions.messages.account_configs import owner_of
from functions.messages.accounts import Account, Recipient, most_specific
from functions.messages.contents import Kind
from functions.messages.quiet_hours import QuietHours, quiet_until
from functions.messages.tenant_rate import RateLimit

_QUERIES = read_queries(Path(__file__).with_name("policies.sql"))
ALL = "*"
"""Stands for all tenants; no tenant can have this name."""


@dataclass(frozen=True, slots=True)
class RegionalHours:
    """Quiet hours and the messages to which they apply."""

    tenant_id: str | None
    regions: Sequence[str]
    hours: QuietHours


@dataclass(frozen=True, slots=True)
class Policy:
    """What applies to one tenant, or to all tenants, and one kind."""

    accounts: tuple[Account, ...] = ()
    quiet_hours: tuple[RegionalHours, ...] = ()
    rate: RateLimit | None = None

    def quiet_until(self, recipient: Recipient, now: datetime, *, is_high: bool) -> datetime | None:
        """When a message may be sent; None for now."""
        rows = most_specific(self.quiet_hours, recipient)
        return quiet_until([row.hours for row in rows], now, is_high=is_high)


@dataclass(slots=True)
class _Parts:
    accounts: list[Account] = field(default_factory=list)
    quiet_hours: list[RegionalHours] = field(default_factory=list)
    rate: RateLimit | None = None

    def policy(self) -> Policy:
        return Policy(tuple(self.accounts), tuple(self.quiet_hours), self.rate)


class Policies:
    """Cached lookup of what applies to messages of one kind. Call `start` first and `stop` after.

    Args:
        pool: has room for one connection that listens, and one more.
        kind: the kind of message.
        box: opens the secrets of accounts.
        log: where an account that cannot be read is named.
    """

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        kind: Kind,
        box: SecretBox,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._pool = pool
        self._kind = kind
        self._box = box
        self._log = log
        self._policies: Cache[str, Policy] = Cache(self._load, max_size=10_000)
        self._changes = ChangeListener(pool, self._forget, log)

    async def start(self) -> None:
        """Start to listen for changes."""
        await self._changes.start()

    async def stop(self) -> None:
        """Stop listening and return the connection to the pool."""
        await self._changes.stop()

    async def of(self, tenant_id: str) -> Policy:
        """What applies to a tenant's messages, its own and what applies to all."""
        found = await self._policies.lookup([tenant_id, ALL], self._changes)
        own, general = found[tenant_id] or Policy(), found[ALL] or Policy()
        return Policy(
            own.accounts + general.accounts, own.quiet_hours + general.quiet_hours, own.rate
        )

    async def account(self, name: str) -> Account | None:
        """An account by its name, whether or not it is enabled; None when it cannot be used."""
        row = await self._pool.fetchrow(_QUERIES["account"], name, self._kind)
        return None if row is None else self._account(row)

    def _forget(self, change: str) -> None:
        match change.split("/"):
            case ["message-policies", tenant_id]:
                self._policies.forget_one(tenant_id)
            case ["device" | "tenant" | "routes", *_]:
                pass
            case _:
                self._policies.forget(lambda _: True)

    async def _load(self, tenants: list[str]) -> dict[str, Policy]:
        parts: dict[str, _Parts] = {}
        for row in await self._pool.fetch(_QUERIES["accounts"], tenants, self._kind):
            if (account := self._account(row)) is not None:
                parts.setdefault(row["owner"], _Parts()).accounts.append(account)
        for row in await self._pool.fetch(_QUERIES["quiet_hours"], tenants, self._kind):
            parts.setdefault(row["owner"], _Parts()).quiet_hours.append(_hours(row))
        for row in await self._pool.fetch(_QUERIES["rates"], tenants, self._kind):
            limit = RateLimit(row["per_s"], row["burst"])
            parts.setdefault(row["owner"], _Parts()).rate = limit
        return {owner: found.policy() for owner, found in parts.items()}

    def _account(self, row: Any) -> Account | None:  # noqa: ANN401 - the driver's row
        try:
            config = orjson.loads(row["config"])
            if row["secrets"] is not None:
                config |= orjson.loads(self._box.open(row["secrets"], owner_of(row["name"])))
        except (Unreadable, ValueError) as failure:
            # Without a traceback, which may show a secret. Messages take the next account, or wait.
            self._log.error(
                "A provider account cannot be read and is not used",
                account=row["name"],
                reason=str(failure),
            )
            return None
        return Account(
            row["name"],
            row["kind"],
            row["tenant_id"],
            tuple(row["regions"]),
            row["rank"],
            tuple(row["senders"]),
            config,
            row["updated_at"].isoformat(),
        )


def _hours(row: Any) -> RegionalHours:  # noqa: ANN401 - the driver's row
    return RegionalHours(
        row["tenant_id"],
        tuple(row["regions"]),
        QuietHours(
            ZoneInfo(row["time_zone"]),
            row["starts"],
            row["ends"],
            frozenset(row["days"]),
            row["high_passes"],
        ),
    )


__all__ = ["ALL", "Policies", "Policy", "RegionalHours"]
