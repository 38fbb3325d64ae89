"""Endpoints for provider accounts: through whom messages are sent."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import orjson
from pydantic import BaseModel, Field, StringConstraints

from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_text, cut, read_cursor
from functions.domain.secret_box import SecretBox, SecretsSettings, Unreadable
from functions.domain.values import JsonObject
from functions.messages.account_configs import owner_of, read_config, show, split
from functions.messages.contents import EmailAddress, Kind
from functions.messages.policy_requests import PolicyList, PolicyRequest, Regions
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("accounts.sql"))

# The name under which the host looks for a function's settings.
Settings = SecretsSettings

AccountName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
SenderText = (
    EmailAddress
    | Annotated[
        str,
        StringConstraints(
            pattern=r"^(\*|@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})+"
            r"|\+[1-9][0-9]{1,14}|[0-9]{3,8}|MG[0-9a-f]{32}|[A-Za-z0-9][A-Za-z0-9 _-]{0,10})$",
            max_length=254,
        ),
    ]
)
Senders = Annotated[tuple[SenderText, ...], Field(max_length=100)]
Rank = Annotated[int, Field(ge=0, le=999_999)]


class CreateAccount(PolicyRequest):
    """A new account. Without `tenant_id` it sends for all tenants.

    `config` depends on `kind`: for email `host`, `port`, `security`, `username`, `password`,
    `sender`, `sender_name`, `ca`, `max_connections`; for sms `account_sid`, `auth_token`, `sender`,
    `base_url`; for webhook `secret`, `signing_key`, `headers`.
    """

    name: AccountName
    kind: Kind
    tenant_id: TenantId | None = None
    regions: Regions = ()
    rank: Rank = 100
    senders: Senders = ()
    config: JsonObject
    is_enabled: bool = True


class AccountRequest(PolicyRequest):
    """A request about one account."""

    name: AccountName


class UpdateAccount(AccountRequest):
    """A change of an account; an absent field stays as it is.

    `config` replaces the whole configuration, but keeps the secrets that it does not name.
    """

    regions: Regions | None = None
    rank: Rank | None = None
    senders: Senders | None = None
    config: JsonObject | None = None
    is_enabled: bool | None = None


class ListAccounts(PolicyList):
    """A request for accounts: all, or those of one tenant or kind."""

    tenant_id: TenantId | None = None
    kind: Kind | None = None


class ProviderAccount(BaseModel):
    """A provider account, with its secrets hidden."""

    name: str
    kind: Kind
    tenant_id: str | None
    regions: list[str]
    rank: int
    senders: list[str]
    config: dict[str, Any]
    is_enabled: bool
    created_at: datetime
    updated_at: datetime


class AccountWithSecret(ProviderAccount):
    """A new account; `secret` is the signing key of a webhook account, shown this once."""

    secret: str | None = None


class DeletedAccount(BaseModel):
    """The deleted account."""

    name: str
    kind: Kind
    tenant_id: str | None


async def create_account(event: Event[CreateAccount], ctx: Context[None]) -> AccountWithSecret:
    """Create a provider account."""
    wanted = event.data
    config = _read(wanted.kind, wanted.config)
    _check_headers(config, wanted.tenant_id)
    clear, sealed = _stored(ctx, wanted.kind, wanted.name, config)
    try:
        row = await ctx.postgres.fetchrow(
            _QUERIES["insert"],
            *(wanted.name, wanted.kind, wanted.tenant_id, wanted.regions, wanted.rank),
            *(wanted.senders, clear, sealed, wanted.is_enabled),
        )
    except asyncpg.ForeignKeyViolationError:
        raise Reject("TENANT_NOT_FOUND", "There is no such tenant.", status=404) from None
    except asyncpg.UniqueViolationError:
        raise Reject("ACCOUNT_EXISTS", "There is an account of this name.", status=409) from None
    secret = config["secret"] if wanted.kind == "webhook" else None
    return AccountWithSecret(**_account(row).model_dump(), secret=secret)


async def get_account(event: Event[AccountRequest], ctx: Context[None]) -> ProviderAccount:
    """One provider account, without its secrets."""
    row = await ctx.postgres.fetchrow(_QUERIES["find"], event.data.name)
    if row is None:
        raise _not_found()
    return _account(row)


async def list_accounts(event: Event[ListAccounts], ctx: Context[None]) -> Page[ProviderAccount]:
    """Provider accounts in the order of their names."""
    query = event.data
    (after,) = read_cursor(query.cursor, as_text)
    rows = await ctx.postgres.fetch(
        _QUERIES["page"], query.tenant_id, query.kind, after, query.limit + 1
    )
    return cut([_account(row) for row in rows], query.limit, lambda account: (account.name,))


async def update_account(event: Event[UpdateAccount], ctx: Context[None]) -> ProviderAccount:
    """Change, enable or disable a provider account; holds for the next attempt of any message."""
    change = event.data
    async with ctx.postgres.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(_QUERIES["lock"], change.name)
        if row is None:
            raise _not_found()
        clear, sealed = row["config"], row["secrets"]
        if change.config is not None:
            config = _read(row["kind"], change.config, _opened(ctx, row))
            _check_headers(config, row["tenant_id"])
            clear, sealed = _stored(ctx, row["kind"], row["name"], config)
        row = await connection.fetchrow(
            _QUERIES["update"],
            change.name,
            row["regions"] if change.regions is None else change.regions,
            row["rank"] if change.rank is None else change.rank,
            row["senders"] if change.senders is None else change.senders,
            *(clear, sealed),
            row["is_enabled"] if change.is_enabled is None else change.is_enabled,
        )
    return _account(row)


async def delete_account(event: Event[AccountRequest], ctx: Context[None]) -> DeletedAccount:
    """Delete a provider account. Its messages take another account, or wait for one."""
    row = await ctx.postgres.fetchrow(_QUERIES["delete"], event.data.name)
    if row is None:
        raise _not_found()
    return DeletedAccount(**dict(row))


def _read(kind: Kind, given: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return read_config(kind, given, old=old)
    except ValueError as invalid:
        raise Reject(
            "ACCOUNT_INVALID", f"config of an account for {kind}: {invalid}", status=422
        ) from None


def _check_headers(config: dict[str, Any], tenant_id: str | None) -> None:
    """Require a tenant for headers: they are secrets, and a message names the URL that gets them.

    Raises:
        Reject: the account is of all tenants, each of which could have the headers sent to itself.
    """
    if tenant_id is None and config.get("headers"):
        reason = "config: an account with headers needs a tenant_id: its webhooks go to any URL"
        raise Reject("ACCOUNT_INVALID", reason, status=422)


def _stored(
    ctx: Context[None], kind: Kind, name: str, config: dict[str, Any]
) -> tuple[str, bytes | None]:
    """The part in clear as JSON, and the secrets, encrypted."""
    clear, hidden = split(kind, config)
    text = orjson.dumps(clear).decode()
    if hidden is None:
        return text, None
    box = SecretBox.of(ctx.settings.secrets_keys)
    if not box.can_seal:
        raise Reject(
            "SECRETS_KEY_MISSING",
            "No key is configured that encrypts secrets; set SECRETS_KEYS.",
            status=503,
        )
    return text, box.seal(hidden, owner_of(name))


def _opened(ctx: Context[None], row: asyncpg.Record) -> dict[str, Any]:
    """The configuration with its secrets; without them if no key opens them."""
    config: dict[str, Any] = orjson.loads(row["config"])
    if row["secrets"] is None:
        return config
    try:
        opened = SecretBox.of(ctx.settings.secrets_keys).open(row["secrets"], owner_of(row["name"]))
    except Unreadable:
        ctx.log.warning("No key opens the secrets of an account", account=row["name"])
        return config
    hidden: dict[str, Any] = orjson.loads(opened)
    return config | hidden


def _account(row: Any) -> ProviderAccount:  # noqa: ANN401 - a row, whose columns the model checks
    known = dict(row)
    has_secrets = known.pop("secrets") is not None
    shown = show(known["kind"], orjson.loads(known.pop("config")), has_secrets=has_secrets)
    return ProviderAccount(config=shown, **known)


def _not_found() -> Reject:
    return Reject("ACCOUNT_NOT_FOUND", "There is no such account.", status=404)
