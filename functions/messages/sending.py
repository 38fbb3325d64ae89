"""The state of a function that sends messages of one kind, and its settings."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

from pydantic import ConfigDict, Field, StringConstraints

from functions.domain.secret_box import SecretBox, SecretsSettings
from functions.messages.accounts import Account
from functions.messages.contents import Kind
from functions.messages.delivery import Policy, Sender
from functions.messages.policies import Policies
from functions.messages.routed_provider import AccountClient, RoutedProvider
from functions.messages.tenant_rate import RateLimit
from functions.messages.tenant_turns import TenantTurns
from runtime import Context

DEFAULT_ACCOUNT = "default"
LAST_RANK = 1_000_000
SLACK_S = 2.0
"""What a call may take beyond the time limit of its request."""

Client = TypeVar("Client", bound=AccountClient)


class SendingSettings(SecretsSettings):
    """Settings of every kind.

    Attributes:
        attempts: the most attempts of one message; as many as the manifest's `retry.attempts`.
        call_s: time limit of one attempt.
        rate_per_s: how many messages a tenant without a rate of its own may send a second; 0 for
            as many as it likes.
        rate_burst: how many of them at once.
        busy_for_s: how long a message waits for a provider that is busy or refuses the account.
        senders: which senders messages may state when the account of the manifest sends them,
            beside its own, by commas: addresses, numbers, `@domain`, or `*`.
        secrets_keys: open the secrets of accounts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    call_s: Annotated[float, Field(gt=0, le=600)] = 60.0
    rate_per_s: Annotated[float, Field(ge=0, le=100_000)] = 0.0
    rate_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    busy_for_s: Annotated[float, Field(ge=0, le=604_800)] = 86_400.0
    senders: Annotated[str, StringConstraints(max_length=4096)] = ""

    @property
    def rate(self) -> RateLimit | None:
        """The rate of a tenant without one of its own."""
        return RateLimit(self.rate_per_s, self.rate_burst) if self.rate_per_s else None

    @property
    def policy(self) -> Policy:
        """The bounds of sending."""
        return Policy(self.attempts, self.call_s + SLACK_S, self.busy_for_s)


def default_account(
    kind: Kind, config: dict[str, Any] | None, *, name: str = DEFAULT_ACCOUNT, senders: str = ""
) -> Account | None:
    """The account of the manifest, used where the table has none that works.

    Args:
        kind: the kind of messages.
        config: its configuration; None for no account.
        name: what messages and attempts call it.
        senders: which senders messages may state beside its own, by commas.
    """
    if config is None:
        return None
    allowed = tuple(each.strip() for each in senders.split(",") if each.strip())
    return Account(name, kind, rank=LAST_RANK, senders=allowed, config=config, version="manifest")


async def open_provider(
    ctx: Context[Any],
    kind: Kind,
    connect: Callable[[Account], Awaitable[Client]],
    *,
    account: Account | None,
    remedy: str,
    repeats_are_safe: bool = False,
    check_sent_after_s: float | None = None,
    look_up_after_s: float | None = None,
    on_close: Callable[[], Awaitable[None]] | None = None,
) -> RoutedProvider[Client]:
    """The provider of one kind, with its accounts; `close_sender` ends it."""
    settings: SendingSettings = ctx.settings
    policies = Policies(ctx.postgres, kind, SecretBox.of(settings.secrets_keys), ctx.log)
    await policies.start()
    return RoutedProvider(
        policies,
        TenantTurns(ctx.postgres, kind),
        connect,
        ctx.log,
        default_account=account,
        default_rate=settings.rate,
        remedy=remedy,
        repeats_are_safe=repeats_are_safe,
        check_sent_after_s=check_sent_after_s,
        look_up_after_s=look_up_after_s,
        on_close=on_close,
    )


@runtime_checkable
class Closable(Protocol):
    """A provider with connections."""

    async def close(self) -> None:
        """Close them."""


async def close_sender(sender: Sender) -> None:
    """End what a function that sends has opened."""
    await sender.store.close()
    provider = sender.provider
    if isinstance(provider, Closable):
        await provider.close()


__all__ = ["SLACK_S", "SendingSettings", "close_sender", "default_account", "open_provider"]
