"""Chooses the provider account that sends a message: by tenant, region and order. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

EXACT = 1000
"""Specificity of a region that is named by the message, above that of any prefix."""


class Routable(Protocol):
    """A row that applies to some messages."""

    @property
    def tenant_id(self) -> str | None:
        """The tenant whose messages it applies to; None for those of all."""

    @property
    def regions(self) -> Sequence[str]:
        """E.164 prefixes such as `+43`, or names of regions; none for every region."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """What the choice knows of a message.

    Attributes:
        region: the region that the message names.
        number: a text message's recipient in E.164's form; empty for other kinds.
    """

    tenant_id: str
    region: str | None = None
    number: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """An account at a provider, through which messages of one kind are sent.

    Attributes:
        name: what status messages and attempts call it; unique.
        rank: of accounts that fit equally well, the lowest rank is used first.
        senders: which `sender` a message may state beside the account's own: an address, a number,
            `@domain`, or `*`.
        config: the provider's configuration, secrets included.
        version: changes with every change of the row.
    """

    name: str
    kind: str
    tenant_id: str | None = None
    regions: Sequence[str] = ()
    rank: int = 100
    senders: Sequence[str] = ()
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    version: str = ""

    def allows_sender(self, sender: str) -> bool:
        """Whether messages may state this sender."""
        own = str(self.config.get("sender", ""))
        domain = sender[sender.find("@") :].lower() if "@" in sender else None
        return any(
            each == "*" or each.lower() == sender.lower() or each.lower() == domain
            for each in (own, *self.senders)
            if each
        )


def specificity(row: Routable, recipient: Recipient) -> tuple[int, int] | None:
    """How closely a row fits a message, more specific ones first; None when it does not.

    A tenant's own row comes before one of all tenants. Then the region counts: the one that the
    message names, before the longest prefix of its number, before any.
    """
    if row.tenant_id not in {None, recipient.tenant_id}:
        return None
    fits = [_fit(region, recipient) for region in row.regions] or [0]
    best = max(fits)
    return None if best < 0 else (row.tenant_id is not None, best)


def most_specific(rows: Iterable[Any], recipient: Recipient) -> list[Any]:
    """The rows that fit a message most closely, in their order."""
    fitting = [(fit, row) for row in rows if (fit := specificity(row, recipient)) is not None]
    best = max((fit for fit, _ in fitting), default=None)
    return [row for fit, row in fitting if fit == best]


def candidates(accounts: Iterable[Account], recipient: Recipient) -> list[Account]:
    """The accounts that may send a message, the preferred one first.

    A tenant that has an account of its own for the message is never sent through a shared one,
    whoever pays for that.
    """
    fitting = [(fit, each) for each in accounts if (fit := specificity(each, recipient))]
    if any(is_own for (is_own, _), _ in fitting):
        fitting = [pair for pair in fitting if pair[0][0]]
    fitting.sort(key=lambda pair: (-pair[0][1], pair[1].rank, pair[1].name))
    return [each for _, each in fitting]


def _fit(region: str, recipient: Recipient) -> int:
    if region.startswith("+"):
        return len(region) if recipient.number.startswith(region) else -1
    return EXACT if region == recipient.region else -1


__all__ = ["Account", "Recipient", "candidates", "most_specific", "specificity"]
