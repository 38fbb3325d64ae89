"""The endpoints of accounts, quiet hours and rates, and what becomes of their secrets."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from pydantic import SecretStr, ValidationError

from functions.domain.secret_box import SecretBox, SecretsSettings
from functions.management import tenants
from functions.messages import account_endpoints as accounts
from functions.messages import hours_and_rates as policies
from functions.messages.policies import Policies
from functions.messages.seal_accounts import seal_accounts
from runtime import Reject
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller

OLD, NEW = "o" * 32, "n" * 32
SMTP: dict[str, Any] = {
    "host": "smtp.example.com",
    "username": "shop",
    "password": "very secret",
    "sender": "shop@example.com",
}
WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def keys(*texts: str) -> SecretsSettings:
    return SecretsSettings(secrets_keys=SecretStr(",".join(texts)) if texts else None)


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=4)
    caller = Caller(pool, settings=keys(OLD))
    await caller.ask(tenants.create_tenant, tenant_id="acme")
    yield caller
    await pool.close()


async def add(api: Caller, name: str = "mail", **fields: Any) -> accounts.AccountWithSecret:
    wanted = {"name": name, "kind": "email", "config": SMTP, **fields}
    return await api.ask(accounts.create_account, **wanted)


async def sealed_of(api: Caller, name: str = "mail") -> bytes:
    query = "SELECT secrets FROM provider_accounts WHERE name = $1"
    sealed: bytes = await api.pool.fetchval(query, name)
    return sealed


async def test_an_account_s_secrets_are_encrypted_and_never_shown(api: Caller) -> None:
    made = await add(api, regions=["+43", "eu-west"], senders=["@shop.example"], rank=7)

    assert made.config == SMTP | {"password": "***"}
    assert (made.regions, made.senders, made.rank) == (["+43", "eu-west"], ["@shop.example"], 7)
    shown = await api.ask(accounts.get_account, name="mail")
    assert shown.config["password"] == "***"
    [listed] = (await api.ask(accounts.list_accounts, kind="email")).items
    assert listed == shown
    stored = await api.pool.fetchval("SELECT provider_accounts::text FROM provider_accounts")
    assert "very secret" not in stored
    assert b"very secret".hex() not in stored


async def test_a_change_keeps_the_secrets_that_it_does_not_name(api: Caller) -> None:
    await add(api)
    config = {"host": "other.example.com", "username": "shop", "sender": "a@example.com"}
    changed = await api.ask(accounts.update_account, name="mail", config=config, is_enabled=False)
    assert changed.config == config | {"password": "***"}
    assert changed.is_enabled is False
    box = SecretBox([OLD])
    assert b"very secret" in box.open(await sealed_of(api), "provider_accounts/mail")


async def test_a_webhook_account_gets_a_secret_which_is_shown_once(api: Caller) -> None:
    made = await add(api, "hooks", kind="webhook", config={}, tenant_id="acme")
    given = await add(api, "given", kind="webhook", config={"secret": WEBHOOK_SECRET})

    assert made.secret is not None
    assert made.secret.startswith("whsec_")
    assert given.secret == WEBHOOK_SECRET
    shown = await api.ask(accounts.get_account, name="hooks")
    assert made.secret not in shown.model_dump_json()


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        ("email", {"host": "a b", "sender": "a@example.com"}, "host: "),
        ("email", SMTP | {"port": 0}, "port: "),
        ("email", SMTP | {"ca": "no pem"}, "ca: "),
        ("email", SMTP | {"extra": 1}, "extra: "),
        ("email", SMTP | {"sender_name": "a\nb"}, "sender_name: "),
        ("sms", {"account_sid": "AC1", "sender": "+43123"}, "auth_token: "),
        ("sms", {"account_sid": "../x", "auth_token": "t", "sender": "+43123"}, "account_sid: "),
        ("webhook", {"secret": "hunter2 hunter2"}, "secret: "),
        ("webhook", {"headers": {"Host": "x"}}, "headers"),
    ],
)
async def test_a_configuration_that_cannot_be_used_is_refused_without_its_values(
    api: Caller, kind: str, config: dict[str, Any], told: str
) -> None:
    with pytest.raises(Reject) as refused:
        await api.ask(accounts.create_account, name="broken", kind=kind, config=config)
    refusal = refused.value
    assert (refusal.code, refusal.status) == ("ACCOUNT_INVALID", 422)
    assert told in refusal.reason
    assert "hunter2" not in refusal.reason


async def test_headers_are_sent_for_one_tenant_alone(api: Caller) -> None:
    config = {"headers": {"Authorization": "Bearer hunter2"}}
    invalid = ("ACCOUNT_INVALID", 422)

    assert await api.refuse(accounts.create_account, name="all", kind="webhook", config=config) == (
        invalid
    )
    await add(api, "all", kind="webhook", config={})
    assert await api.refuse(accounts.update_account, name="all", config=config) == invalid
    await add(api, "own", kind="webhook", config=config, tenant_id="acme")


async def test_without_a_key_no_account_with_secrets_is_stored(api: Caller) -> None:
    keyless = Caller(api.pool, settings=keys())
    refusal = await keyless.refuse(accounts.create_account, name="mail", kind="email", config=SMTP)
    assert refusal == ("SECRETS_KEY_MISSING", 503)
    open_relay = {"host": "localhost", "security": "none", "sender": "a@example.com"}
    await keyless.ask(accounts.create_account, name="open", kind="email", config=open_relay)


async def test_names_and_tenants_are_checked(api: Caller) -> None:
    await add(api)
    taken = await api.refuse(accounts.create_account, name="mail", kind="email", config=SMTP)
    foreign = await api.refuse(
        accounts.create_account, name="x", kind="email", config=SMTP, tenant_id="nobody"
    )
    gone = [
        await api.refuse(accounts.get_account, name="x"),
        await api.refuse(accounts.update_account, name="x"),
        await api.refuse(accounts.delete_account, name="x"),
    ]
    assert taken == ("ACCOUNT_EXISTS", 409)
    assert foreign == ("TENANT_NOT_FOUND", 404)
    assert set(gone) == {("ACCOUNT_NOT_FOUND", 404)}
    assert (await api.ask(accounts.delete_account, name="mail")).kind == "email"
    wrong: dict[str, Any]
    for wrong in ({"name": "Mail"}, {"regions": ["AT"]}, {"regions": ["+43", "+43"]}):
        with pytest.raises(ValidationError):
            await add(api, **wrong)


async def test_after_a_rotation_the_first_key_encrypts_and_a_copied_secret_does_not_open(
    api: Caller,
) -> None:
    await add(api)
    await add(api, "other")
    rotated = Caller(api.pool, settings=keys(NEW, OLD))
    await seal_accounts(rotated.context())
    for name in ("mail", "other"):
        opened = SecretBox([NEW]).open(await sealed_of(api, name), f"provider_accounts/{name}")
        assert b"very secret" in opened

    await api.pool.execute(
        "UPDATE provider_accounts SET secrets = (SELECT secrets FROM provider_accounts"
        " WHERE name = 'other') WHERE name = 'mail'"
    )
    log = structlog.get_logger()
    reader = Policies(api.pool, "email", SecretBox([NEW]), log)
    with structlog.testing.capture_logs() as lines:
        policy = await reader.of("acme")
    assert [account.name for account in policy.accounts] == ["other"]
    assert policy.accounts[0].config["password"] == "very secret"
    [line] = lines
    assert line["account"] == "mail"
    assert "very secret" not in str(line)


HOURS: dict[str, Any] = {"time_zone": "Europe/Vienna", "starts": "22:00", "ends": "07:00"}


async def test_quiet_hours_are_created_changed_listed_and_deleted(api: Caller) -> None:
    made = await api.ask(policies.create_quiet_hours, **HOURS, tenant_id="acme", regions=["+43"])
    general = await api.ask(policies.create_quiet_hours, **HOURS, days=[6, 5, 6])

    assert (made.days, general.days) == ([0, 1, 2, 3, 4, 5, 6], [5, 6])
    changed = await api.ask(
        policies.update_quiet_hours,
        quiet_hours_id=str(made.quiet_hours_id),
        starts="21:30",
        high_passes=True,
    )
    assert (str(changed.starts), changed.high_passes, changed.regions) == (
        "21:30:00",
        True,
        ["+43"],
    )
    first = await api.ask(policies.list_quiet_hours, limit=1)
    rest = await api.ask(policies.list_quiet_hours, limit=1, cursor=first.next_cursor)
    assert [first.items[0].quiet_hours_id, rest.items[0].quiet_hours_id] == [
        made.quiet_hours_id,
        general.quiet_hours_id,
    ]
    own = await api.ask(policies.list_quiet_hours, tenant_id="acme")
    assert len(own.items) == 1
    gone = {"quiet_hours_id": str(made.quiet_hours_id)}
    await api.ask(policies.delete_quiet_hours, **gone)
    assert await api.refuse(policies.delete_quiet_hours, **gone) == ("QUIET_HOURS_NOT_FOUND", 404)
    assert await api.refuse(policies.update_quiet_hours, **gone) == ("QUIET_HOURS_NOT_FOUND", 404)
    wrong: dict[str, Any]
    for wrong in ({"time_zone": "Europe/Wien"}, {"starts": "25:00"}, {"days": [7]}, {"days": []}):
        with pytest.raises(ValidationError):
            await api.ask(policies.create_quiet_hours, **HOURS | wrong)
    nobody = await api.refuse(policies.create_quiet_hours, **HOURS, tenant_id="nobody")
    assert nobody == ("TENANT_NOT_FOUND", 404)


async def test_a_rate_is_set_replaced_listed_and_deleted(api: Caller) -> None:
    of = {"tenant_id": "acme", "kind": "sms"}
    await api.ask(policies.set_tenant_rate, **of, per_s=10, burst=5)
    replaced = await api.ask(policies.set_tenant_rate, **of, per_s=0.5)
    listed = await api.ask(policies.list_tenant_rates, tenant_id="acme")

    assert (replaced.per_s, replaced.burst) == (0.5, 1)
    assert listed.items == [replaced]
    assert (await api.ask(policies.delete_tenant_rate, **of)).per_s == 0.5
    assert await api.refuse(policies.delete_tenant_rate, **of) == ("RATE_NOT_FOUND", 404)
    nobody = await api.refuse(policies.set_tenant_rate, tenant_id="nobody", kind="sms", per_s=1)
    assert nobody == ("TENANT_NOT_FOUND", 404)
    wrong: dict[str, Any]
    for wrong in ({"per_s": 0}, {"per_s": 1e-9}, {"burst": 0}, {"kind": "fax"}):
        with pytest.raises(ValidationError):
            await api.ask(policies.set_tenant_rate, **{**of, "per_s": 1, **wrong})
