"""Rates that hold over several hosts, by a real database."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import pytest
import structlog
from pydantic import ValidationError

from functions.domain.rate_limiter import RateLimiter
from functions.domain.rate_sharing import (
    MAX_USES,
    KeyUse,
    PostgresStore,
    RateSharing,
    Uses,
    forget_uses,
    share_uses,
)
from runtime import Message
from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.support.gateway import PROVE_DEVICES, Lines, make_streams, run_gateway
from tests.support.host import eventually, running_host
from tests.support.ingest import GOOD, TOKEN, Ingest, register, started
from tests.support.servers import NatsServer

SECOND_NS = 1_000_000_000
A, B = "a" * 16, "b" * 16
SHARE_RATES = {
    "handler": "functions.ingest.shared_rates:share_rates",
    "endpoint": {"service": "management", "subject": "management.rates.share"},
    "uses": ["postgres"],
}


@pytest.fixture
async def pool(postgres_dsn: str) -> "AsyncIterator[asyncpg.Pool[asyncpg.Record]]":
    pool = await open_pool(postgres_dsn, max_size=5)
    yield pool
    await pool.close()


def uses(sharer: str, *found: tuple[str, int, int]) -> Uses:
    told = [KeyUse(key=key, added_ns=added, arrival_ns=arrival) for key, added, arrival in found]
    return Uses(sharing="x", sharer=sharer, uses=told)


async def test_what_two_processes_took_is_added(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    first = await share_uses(pool, uses(A, ("d", 10, 110)))
    assert (first.sharers, first.arrivals) == (1, {"d": 110})
    second = await share_uses(pool, uses(B, ("d", 20, 120), ("e", 5, 105)))
    assert (second.sharers, second.arrivals) == (2, {"d": 130, "e": 105})
    assert (await share_uses(pool, uses(A, ("d", 10, 900)))).arrivals == {"d": 900}
    other = Uses(sharing="y", sharer=A, uses=[])
    assert (await share_uses(pool, other)).sharers == 1
    await pool.execute("UPDATE rate_sharers SET seen_at = now() - interval '1 minute'")
    assert (await share_uses(pool, uses(B))).sharers == 1


@pytest.mark.parametrize("rate_per_s", [0.2, 5.0])
async def test_ten_hosts_keep_a_rate_of_which_each_takes_little(
    pool: "asyncpg.Pool[asyncpg.Record]", rate_per_s: float
) -> None:
    """Ten messages a second, one to each host, for five minutes of the stream's time."""
    log, hosts, burst, seconds = structlog.stdlib.get_logger(), 10, 5, 300
    now_ns = time.time_ns()
    limiters: list[RateLimiter[str]] = [RateLimiter(rate_per_s, burst) for _ in range(hosts)]
    sharings = [
        RateSharing("x", {"device": each}, PostgresStore(pool), log, now_ns=lambda: now_ns)
        for each in limiters
    ]
    for _ in range(2):
        for sharing in sharings:
            await sharing.share()
    accepted = 0
    for _ in range(seconds):
        for limiter in limiters:
            now_ns += SECOND_NS // hosts
            accepted += limiter.take("d", now_ns)
        for sharing in sharings:
            await sharing.share()
    # The bound that `rate_sharing` states.
    assert accepted <= rate_per_s * seconds + hosts * (burst + rate_per_s + 2)
    assert accepted >= rate_per_s * seconds


async def test_a_process_whose_clock_is_wrong_makes_no_debt_for_the_others(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    """Each process gets times of its own clock, whatever the others' clocks show."""
    hour_ns = 3600 * SECOND_NS
    for key, ahead_ns in (("d", hour_ns), ("e", -hour_ns)):

        async def share(sharer: str, clock_ns: int, key: str = key) -> int:
            now_ns = time.time_ns() + clock_ns
            use = KeyUse(key=key, added_ns=SECOND_NS, arrival_ns=now_ns + SECOND_NS)
            told = Uses(sharing="x", sharer=sharer, now_ns=now_ns, uses=[use])
            return (await share_uses(pool, told)).arrivals[key] - now_ns

        wrong = await share(A, ahead_ns)
        right = await share(B, 0)
        wrong_again = await share(A, ahead_ns)
        # One, two and three seconds of tokens, less what has passed meanwhile.
        assert wrong == pytest.approx(SECOND_NS, abs=SECOND_NS / 100)
        assert SECOND_NS <= right <= 2 * SECOND_NS
        assert right <= wrong_again <= 3 * SECOND_NS


async def test_a_gateway_whose_clock_is_ahead_silences_no_device_of_the_others(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    log = structlog.stdlib.get_logger()

    def clock(ahead_s: int) -> int:
        return time.time_ns() + ahead_s * SECOND_NS

    limiters, sharings = [], []
    for ahead_s in (0, 600):
        limiter: RateLimiter[str] = RateLimiter(1000, 1000)
        now_ns = partial(clock, ahead_s)
        sharing = RateSharing(
            *("gateway", {"device": limiter}, PostgresStore(pool), log),
            now_ns=now_ns,
            has_own_clock=True,
        )
        limiters.append((limiter, now_ns))
        sharings.append(sharing)
    for _ in range(4):
        for limiter, now_ns in limiters:
            assert all(limiter.take("d", now_ns()) for _ in range(10))
        for sharing in sharings:
            await sharing.share()


async def test_what_nobody_uses_is_forgotten(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    await share_uses(pool, uses(A, ("old", 1, 1), ("new", 1, 1)))
    await pool.execute("UPDATE rate_arrivals SET changed_at = '2000-01-01Z' WHERE key = 'old'")
    await pool.execute("UPDATE rate_sharers SET seen_at = '2000-01-01Z'")
    await forget_uses(pool)
    assert await pool.fetchval("SELECT array_agg(key) FROM rate_arrivals") == ["new"]
    assert await pool.fetchval("SELECT count(*) FROM rate_sharers") == 0


async def test_many_processes_tell_of_the_same_keys_at_once(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    names = [f"d{number}" for number in range(MAX_USES)]
    told = [
        uses(f"{process:016x}", *((key, 7, 7) for key in (names if process % 2 else names[::-1])))
        for process in range(8)
    ]
    await asyncio.gather(*(share_uses(pool, each) for each in told))
    found = await pool.fetchval("SELECT array_agg(DISTINCT arrival_ns) FROM rate_arrivals")
    assert found == [56]


def message(sequence: int, stored_at_ns: int) -> Message:
    return Message(
        "telemetry.test.dev1",
        json.dumps(GOOD).encode(),
        stream="TELEMETRY",
        sequence=sequence,
        stored_at_ns=stored_at_ns,
    )


async def test_two_hosts_accept_the_rate_of_one_device_once(
    postgres_dsn: str, broker: Broker
) -> None:
    async with (
        started(postgres_dsn, broker) as first,
        started(postgres_dsn, broker) as second,
    ):
        await register(first.pool)
        hosts: list[Ingest] = [first, second]
        begin_ns = time.time_ns()
        for host in hosts:
            await host.state.sharing.stop()
        for host in [*hosts, *hosts]:
            await host.state.sharing.share()
        # 20 a second for 30 seconds, every other message to each host.
        for second_no in range(30):
            numbers = range(second_no * 20, second_no * 20 + 20)
            for place, host in enumerate(hosts):
                mine = [message(n, begin_ns + n * SECOND_NS // 20) for n in numbers[place::2]]
                await host.run(*mine)
                host.state.sharing._now_ns = partial(int, begin_ns + second_no * SECOND_NS)
            for host in hosts:
                await host.state.sharing.share()
        written, refused = await first.counts()
    assert written + refused == 600
    # 5 a second, and each host's burst of 20; each alone would have taken 340.
    assert 140 <= written <= 5 * 30 + 2 * 20 + 10


async def test_a_tenants_rate_counts_all_its_devices(postgres_dsn: str, broker: Broker) -> None:
    async with started(postgres_dsn, broker, tenant_rate_per_s=1, tenant_burst=3) as function:
        for device in ("dev1", "dev2"):
            await register(function.pool, device=device)
        await register(function.pool, tenant="other", device="dev1")
        now_ns = time.time_ns()
        flood = [message(n, now_ns) for n in range(1, 7)]
        for each in flood[3:]:
            each.subject = "telemetry.test.dev2"
        theirs = message(7, now_ns)
        theirs.subject = "telemetry.other.dev1"
        await function.run(*flood, theirs)
        assert [row["seq"] for row in await function.rows()] == [1, 2, 3, 7]
        reasons = {row["reason"] for row in (await function.quarantined()).values()}
        assert reasons == {"TENANT_RATE_LIMITED"}


async def test_while_the_database_is_away_each_limits_alone_and_says_so_once(
    pool: "asyncpg.Pool[asyncpg.Record]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.domain.rate_sharing._ALONE_EVERY_S", 0.01)
    await pool.execute("ALTER TABLE rate_sharers RENAME TO hidden")
    lines = Lines()
    limiter: RateLimiter[str] = RateLimiter(5, 20)
    sharing = RateSharing("x", {"device": limiter}, PostgresStore(pool), lines.logger())
    sharing.start()
    await lines.wait("Rates are not shared; each process limits alone", sharing="x")
    assert [limiter.take("d", 1) for _ in range(21)] == [True] * 20 + [False]
    await pool.execute("ALTER TABLE hidden RENAME TO rate_sharers")
    await lines.wait("Rates are shared again", sharing="x")
    await sharing.stop()
    assert len(lines.entries) == 2


async def test_two_gateways_accept_the_rate_of_one_device_once(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    pool: "asyncpg.Pool[asyncpg.Record]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_EVERY_S", "_ALONE_EVERY_S"):
        monkeypatch.setattr(f"functions.domain.rate_sharing.{name}", 0.05)
    await register(pool)
    rates = {"require_token": True, "device_rate_per_s": 20, "device_burst": 5}
    functions = {"prove_devices": PROVE_DEVICES, "share_rates": SHARE_RATES}
    path, headers = "/ingest/v1/tenant/test/device/dev1/telemetry", {"X-Provision-Token": TOKEN}
    async with (
        running_host(nats_server.url, functions, database_url=postgres_dsn),
        make_streams(broker),
        run_gateway(broker, **rates) as first,
        run_gateway(broker, **rates) as second,
    ):

        async def know_each_other() -> bool:
            found: int = await pool.fetchval("SELECT count(*) FROM rate_sharers")
            return found == 2

        await eventually(know_each_other, "two gateways that share")
        began_s = time.monotonic()
        statuses: list[int] = []
        while time.monotonic() - began_s < 5:
            answers = await asyncio.gather(
                *(each.client.post(path, json=GOOD, headers=headers) for each in (first, second))
            )
            statuses += [answer.status_code for answer in answers]
        lasted_s = time.monotonic() - began_s
    assert set(statuses) == {202, 429}
    # Each alone would accept 5 and 20 a second.
    assert statuses.count(202) <= 20 * lasted_s + 2 * 5 + 40


async def test_hosts_of_another_group_do_not_share(
    pool: "asyncpg.Pool[asyncpg.Record]",
) -> None:
    await share_uses(pool, uses(A, ("d", 10, 110)))
    told = KeyUse(key="d", added_ns=1, arrival_ns=5)
    found = await share_uses(pool, Uses(sharing="y", sharer=B, uses=[told]))
    assert (found.sharers, found.arrivals) == (1, {"d": 5})


@pytest.mark.parametrize(
    "hostile",
    [
        {"sharing": "X"},
        {"sharer": "a"},
        {"uses": [{"key": "d", "added_ns": -1, "arrival_ns": 1}]},
        {"uses": [{"key": "d", "added_ns": 1, "arrival_ns": 2**63}]},
        {"uses": [{"key": "d\0", "added_ns": 1, "arrival_ns": 1}]},
        {"uses": [{"key": "d", "added_ns": 1, "arrival_ns": 1}] * (MAX_USES + 1)},
    ],
)
def test_what_is_no_use_is_refused(hostile: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Uses.model_validate({"sharing": "x", "sharer": A, "uses": [], **hostile})
