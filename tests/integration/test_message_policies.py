"""Who sends a message, when and how many: accounts, quiet hours and rates of the tables."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import pytest
import structlog

from functions.domain.secret_box import SecretBox
from functions.messages.accounts import Account
from functions.messages.contents import OutMessage, SmsContent
from functions.messages.policies import Policies
from functions.messages.provider import Outcome, Receipt
from functions.messages.routed_provider import RoutedProvider, Sending
from functions.messages.tenant_rate import RateLimit
from functions.messages.tenant_turns import TenantTurns
from runtime.resource.postgres import open_pool

KEY = "k" * 32

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]


@dataclass
class ScriptedClient:
    """A client whose result stands in the account's configuration."""

    account: Account
    closed: bool = False

    async def send(self, message: OutMessage) -> Sending:
        verdict = self.account.config.get("verdict", "works")
        outcome: Outcome = "sent" if verdict == "works" else "failed"
        return Sending(Receipt(outcome, "" if outcome == "sent" else "HTTP_500"), verdict)

    async def close(self) -> None:
        self.closed = True


@dataclass
class Host:
    """One host's provider, and the clients that it has made."""

    provider: RoutedProvider[ScriptedClient]
    clients: list[ScriptedClient] = field(default_factory=list)

    async def account_of(self, message: OutMessage) -> str:
        """The account that may send the message now, or why none may."""
        admission = await self.provider.admit(message)
        return admission.account or admission.reason.partition(":")[0]


@asynccontextmanager
async def running_host(
    dsn: str, default: Account | None = None, rate: RateLimit | None = None
) -> AsyncIterator[Host]:
    pool = await open_pool(dsn, max_size=4)
    policies = Policies(pool, "sms", SecretBox([KEY]), structlog.get_logger())
    await policies.start()
    host: Host

    async def connect(account: Account) -> ScriptedClient:
        if "port" in account.config:
            raise ValueError("the password is hunter2")
        client = ScriptedClient(account)
        host.clients.append(client)
        return client

    provider = RoutedProvider(
        policies,
        TenantTurns(pool, "sms"),
        connect,
        structlog.get_logger(),
        default_account=default,
        default_rate=rate,
    )
    host = Host(provider)
    try:
        yield host
    finally:
        await provider.close()
        await pool.close()


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator["Pool"]:
    pool = await open_pool(postgres_dsn, max_size=2)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('acme'), ('other')")
    yield pool
    await pool.close()


def sms(message_id: str = "m1", tenant: str = "acme", **fields: Any) -> OutMessage:
    content = {"to": "+436641234567", "body": "hello"} | fields
    return OutMessage(tenant, message_id, SmsContent.model_validate(content))


async def add_account(pool: "Pool", name: str, tenant: str | None = None, **columns: Any) -> None:
    await pool.execute(
        "INSERT INTO provider_accounts (name, kind, tenant_id, regions, rank, senders, config)"
        " VALUES ($1, 'sms', $2, $3, $4, $5, $6::text::jsonb)",
        *(name, tenant, columns.get("regions", []), columns.get("rank", 100)),
        *(columns.get("senders", []), orjson.dumps(columns.get("config", {})).decode()),
    )


async def add_quiet_hours(pool: "Pool", tenant: str | None = None, **columns: Any) -> None:
    """Quiet hours that began an hour ago and end in an hour, UTC."""
    now = datetime.now(UTC)
    await pool.execute(
        "INSERT INTO quiet_hours (tenant_id, regions, time_zone, starts, ends, high_passes)"
        " VALUES ($1, $2, 'UTC', $3, $4, $5)",
        *(tenant, columns.get("regions", [])),
        *((now - timedelta(hours=1)).time(), (now + timedelta(hours=1)).time()),
        columns.get("high_passes", False),
    )


async def eventually_account(host: Host, message: OutMessage, expected: str) -> None:
    """Wait until a change has been heard."""
    async with asyncio.timeout(60):
        while await host.account_of(message) != expected:  # noqa: ASYNC110 - a notification
            await asyncio.sleep(0.02)


async def test_tenant_and_region_choose_the_account_and_a_change_takes_effect_at_once(
    pool: "Pool", postgres_dsn: str
) -> None:
    async with running_host(postgres_dsn) as host:
        assert await host.account_of(sms()) == "NO_ACCOUNT"
        await add_account(pool, "world")
        await add_account(pool, "austria", regions=["+43"])
        await add_account(pool, "of-other", "other")
        await eventually_account(host, sms(), "austria")
        assert await host.account_of(sms(to="+12125550100")) == "world"
        assert await host.account_of(sms(tenant="other")) == "of-other"
        await pool.execute("UPDATE provider_accounts SET is_enabled = FALSE WHERE name = 'austria'")
        await eventually_account(host, sms(), "world")


async def test_the_account_of_the_manifest_is_the_last(pool: "Pool", postgres_dsn: str) -> None:
    default = Account("default", "sms", rank=1_000_000)
    async with running_host(postgres_dsn, default) as host:
        assert await host.account_of(sms()) == "default"
        await add_account(pool, "table")
        await eventually_account(host, sms(), "table")


async def test_an_account_that_is_broken_is_passed_over_and_its_failure_is_no_attempt(
    pool: "Pool", postgres_dsn: str
) -> None:
    await add_account(pool, "first", rank=1, config={"verdict": "broken"})
    await add_account(pool, "second", rank=2, config={"verdict": "failed"})
    await add_account(pool, "third", rank=3)
    async with running_host(postgres_dsn) as host:
        assert await host.account_of(sms()) == "first"
        receipt = await host.provider.send(sms(), "first")
        assert (receipt.outcome, receipt.retry_after_s) == ("busy", 0.5)
        for _ in range(3):
            assert await host.account_of(sms()) == "second"
            assert (await host.provider.send(sms(), "second")).outcome == "failed"
        assert await host.account_of(sms()) == "third"
        assert (await host.provider.send(sms(), "third")).outcome == "sent"


async def test_an_account_that_cannot_be_used_is_named_and_passed_over(
    pool: "Pool", postgres_dsn: str
) -> None:
    await add_account(pool, "first", rank=1, config={"port": "hunter2"})
    await add_account(pool, "second", rank=2)
    async with running_host(postgres_dsn) as host:
        with structlog.testing.capture_logs() as lines:
            receipt = await host.provider.send(sms(), "first")
        assert (receipt.outcome, receipt.code) == ("busy", "ACCOUNT_INVALID")
        assert await host.account_of(sms()) == "second"
    [line] = [each for each in lines if each["log_level"] == "error"]
    assert line["account"] == "first"
    assert "hunter2" not in f"{lines} {receipt}"


async def test_when_every_account_is_paused_the_message_waits(
    pool: "Pool", postgres_dsn: str
) -> None:
    await add_account(pool, "only", config={"verdict": "broken"})
    async with running_host(postgres_dsn) as host:
        await host.provider.send(sms(), "only")
        admission = await host.provider.admit(sms())
        assert admission.reason.startswith("ACCOUNTS_PAUSED")
        assert 25 < admission.wait_s < 33


async def test_a_changed_account_gets_a_new_client_and_a_removed_one_sends_no_more(
    pool: "Pool", postgres_dsn: str
) -> None:
    await add_account(pool, "a", config={"verdict": "failed"})
    async with running_host(postgres_dsn) as host:
        await host.provider.send(sms(), "a")
        await pool.execute(
            "UPDATE provider_accounts SET config = '{}', updated_at = now() WHERE name = 'a'"
        )
        async with asyncio.timeout(60):
            while (await host.provider.send(sms(), "a")).outcome != "sent":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert [client.closed for client in host.clients] == [True, False]
        await pool.execute("DELETE FROM provider_accounts")
        await eventually_account(host, sms(), "NO_ACCOUNT")
        receipt = await host.provider.send(sms(), "a")
        assert (receipt.outcome, receipt.code) == ("busy", "ACCOUNT_GONE")


async def test_another_tenant_s_account_sends_nothing(pool: "Pool", postgres_dsn: str) -> None:
    await add_account(pool, "of-other", "other")
    async with running_host(postgres_dsn) as host:
        receipt = await host.provider.send(sms(), "of-other")
        assert (receipt.outcome, receipt.code) == ("busy", "ACCOUNT_GONE")
        assert host.clients == []


async def test_a_sender_is_stated_only_where_the_account_allows_it(
    pool: "Pool", postgres_dsn: str
) -> None:
    await add_account(pool, "a", senders=["+4312345"], config={"sender": "ACME"})
    async with running_host(postgres_dsn) as host:
        for sender, outcome in (("ACME", "sent"), ("+4312345", "sent"), ("Bank", "refused")):
            receipt = await host.provider.send(sms(sender=sender), "a")
            assert receipt.outcome == outcome, sender


async def test_a_message_in_quiet_hours_waits_until_they_end(
    pool: "Pool", postgres_dsn: str
) -> None:
    await add_account(pool, "a")
    await add_quiet_hours(pool, regions=["+43"], high_passes=True)
    async with running_host(postgres_dsn) as host:
        admission = await host.provider.admit(sms())
        assert admission.reason.startswith("QUIET_HOURS: quiet hours of the recipient until 20")
        assert 3590 < admission.wait_s < 3670
        assert await host.account_of(sms(to="+12125550100")) == "a"
        assert await host.account_of(sms(priority="high")) == "a"
        # A tenant's own quiet hours stand in place of those of all.
        await add_quiet_hours(pool, "acme", regions=["+1"])
        await eventually_account(host, sms(to="+12125550100", priority="high"), "QUIET_HOURS")
        assert await host.account_of(sms(to="+12125550100", tenant="other")) == "a"


async def test_a_tenant_s_rate_holds_across_two_hosts(pool: "Pool", postgres_dsn: str) -> None:
    await add_account(pool, "a")
    await pool.execute(
        "INSERT INTO message_rates (tenant_id, kind, per_s, burst) VALUES ('acme', 'sms', 20, 5)"
    )
    async with running_host(postgres_dsn) as one, running_host(postgres_dsn) as two:
        sent_at: list[float] = []

        async def send(number: int) -> None:
            host = (one, two)[number % 2]
            while True:
                admission = await host.provider.admit(sms(f"m{number}"))
                if admission.account:
                    sent_at.append(asyncio.get_running_loop().time())
                    return
                assert admission.reason.startswith("TENANT_RATE")
                await asyncio.sleep(admission.wait_s)

        await asyncio.gather(*(send(number) for number in range(35)))
        assert await one.account_of(sms("x", tenant="other")) == "a"

    took_s = max(sent_at) - min(sent_at)
    assert took_s >= 30 / 20 - 0.1
    assert not await pool.fetchval("SELECT count(*) FROM message_turns")


async def test_the_manifest_s_rate_applies_to_a_tenant_without_one_of_its_own(
    pool: "Pool", postgres_dsn: str
) -> None:
    await add_account(pool, "a")
    await pool.execute(
        "INSERT INTO message_rates (tenant_id, kind, per_s, burst) VALUES ('acme', 'sms', 100, 50)"
    )
    async with running_host(postgres_dsn, rate=RateLimit(0.01, 1)) as host:
        results = [await host.account_of(sms(f"m{n}", "other")) for n in range(2)]
        urgent = await host.account_of(sms("urgent", "other", priority="high"))
        own = [await host.account_of(sms(f"m{n}")) for n in range(5)]
        known = await pool.fetchrow("SELECT tenant_id, message_id FROM message_turns")

    assert results == ["a", "TENANT_RATE"]
    assert urgent == "a"
    assert own == ["a"] * 5
    assert known is not None
    assert tuple(known) == ("other", "m1")
