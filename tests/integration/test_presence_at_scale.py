"""Presence of many devices."""

import os
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from runtime.resource.postgres import open_pool
from tests.support.host import eventually
from tests.support.ingest import register
from tests.support.many_sessions import many_sessions
from tests.support.presence import Presence, watching
from tests.support.servers import NatsServer

say = sys.stdout.write
DEVICES = int(os.environ.get("PRESENCE_DEVICES", "3000"))
TIMEOUT_S = 30


@pytest.fixture
async def presence(postgres_dsn: str) -> AsyncIterator[Presence]:
    pool = await open_pool(postgres_dsn, max_size=4)
    await register(pool, device="first")
    yield Presence(pool)
    await pool.close()


async def add_devices(presence: Presence, count: int) -> None:
    await presence.pool.execute(
        "INSERT INTO device_registry (tenant_id, device_id, site_id)"
        " SELECT 'test', 'd' || n, 's1' FROM generate_series(1, $1) AS n",
        count,
    )


async def count(presence: Presence, status: str, numbers: range) -> int:
    found: int = await presence.pool.fetchval(
        "SELECT count(*) FROM device_presence"
        " WHERE status = $1 AND substr(device_id, 2)::int BETWEEN $2 AND $3",
        *(status, numbers[0], numbers[-1]),
    )
    return found


async def all_are(presence: Presence, status: str, numbers: range) -> float:
    """Wait until all of these devices have the status; the seconds it took."""
    began_s = time.monotonic()
    other = "offline" if status == "online" else "online"

    async def are() -> bool:
        # To count 100,000 rows again and again would cost as much as what is measured.
        is_left: bool = await presence.pool.fetchval(
            "SELECT EXISTS (SELECT FROM device_presence WHERE tenant_id = 'test' AND status = $1"
            " AND substr(device_id, 2)::int BETWEEN $2 AND $3)",
            *(other, numbers[0], numbers[-1]),
        )
        return not is_left and await count(presence, status, numbers) == len(numbers)

    await eventually(are, f"{len(numbers)} devices {status}", 300)
    return time.monotonic() - began_s


@pytest.mark.parametrize("devices", [DEVICES, pytest.param(100_000, marks=pytest.mark.long)])
async def test_sessions_are_compared_and_then_followed(
    nats_server: NatsServer, postgres_dsn: str, presence: Presence, devices: int
) -> None:
    await add_devices(presence, devices)
    async with many_sessions(nats_server.system_url) as server:
        server.open_silently(range(1, devices + 1))
        async with watching(nats_server, postgres_dsn, compare_s=3600):
            found_s = await all_are(presence, "online", range(1, devices + 1))
            say(f"{devices} found at the start: {found_s:.1f} s\n")
            took_s = []
            for begin in range(1, 2001, 500):
                some = range(begin, begin + 500)
                await server.disconnect(some)
                took_s.append(await all_are(presence, "offline", some))
                await server.connect(some)
                took_s.append(await all_are(presence, "online", some))
            say(f"500 events at once, {devices} devices: {[round(each, 2) for each in took_s]} s\n")
            # The middle one: whatever else stalls the machine is not in most of them.
            assert sorted(took_s)[len(took_s) // 2] < 2
            for size in (1_000, 10_000):
                if size > devices // 2:
                    continue
                some = range(1, size + 1)
                await server.disconnect(some)
                offline_s = await all_are(presence, "offline", some)
                await server.connect(some)
                online_s = await all_are(presence, "online", some)
                say(
                    f"{size} disconnected at once: {offline_s:.1f} s, connected: {online_s:.1f} s\n"
                )
            most = range(1, devices * 9 // 10 + 1)
            await server.disconnect(most)
            at_once_s = await all_are(presence, "offline", most)
            say(f"{len(most)} disconnected at once: {at_once_s:.1f} s\n")
            assert await count(presence, "online", range(1, devices + 1)) == devices - len(most)
        server.open_silently(most)
        server.end_silently(range(most[-1] + 1, devices + 1))
        async with watching(nats_server, postgres_dsn, compare_s=3600):
            found_s = await all_are(presence, "online", most)
            rest = range(most[-1] + 1, devices + 1)
            found_s += await all_are(presence, "offline", rest)
            say(f"{devices} changes that nobody heard: {found_s:.1f} s\n")
        transitions = await presence.pool.fetchval("SELECT sum(transitions) FROM device_presence")
        queued = await presence.pool.fetchval("SELECT count(*) FROM delivery_outbox")
        assert transitions == queued


@pytest.mark.parametrize("devices", [DEVICES, pytest.param(100_000, marks=pytest.mark.long)])
async def test_silent_devices_are_offline_soon_after_their_timeout(
    nats_server: NatsServer, postgres_dsn: str, presence: Presence, devices: int
) -> None:
    await add_devices(presence, devices)
    # Devices do not speak all at once.
    over_s = 1 + devices // 5000
    async with watching(nats_server, postgres_dsn, timeout_s=TIMEOUT_S):
        began = datetime.now(UTC) - timedelta(seconds=over_s)
        await presence.pool.execute(
            "INSERT INTO device_activity"
            " SELECT 'test', array_agg('d' || n),"
            " array_agg($2::timestamptz + n * $3::interval / $1)"
            " FROM generate_series(1, $1::integer) AS n GROUP BY n / 1000",
            devices,
            began,
            timedelta(seconds=over_s),
        )
        begun_s = time.monotonic()

        async def are_heard() -> bool:
            found: int = await presence.pool.fetchval("SELECT count(*) FROM device_presence")
            return found == devices

        await eventually(are_heard, "all devices", 300)
        seen_s = time.monotonic() - begun_s
        say(f"{devices} devices seen: {seen_s:.1f} s\n")
        await all_are(presence, "offline", range(1, devices + 1))
        late = datetime.now(UTC) - began - timedelta(seconds=over_s + TIMEOUT_S)
        wrong = await presence.pool.fetchval(
            "SELECT count(*) FROM device_presence WHERE changed_at <> last_seen_at + $1",
            timedelta(seconds=TIMEOUT_S),
        )
        say(f"the last of {devices} silent devices: {late.total_seconds():.1f} s late\n")
        assert wrong == 0
        assert late < timedelta(seconds=10)
