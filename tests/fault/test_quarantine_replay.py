"""Hosts are killed while a replay sends messages from quarantine once more."""

import asyncio
import json
from collections import Counter

import asyncpg
import pytest

from functions.management.quarantine_replays import (
    QuarantineReplay,
    create_quarantine_replay,
    get_quarantine_replay,
)
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.resource.postgres import open_pool
from tests.fault.hosts import two_hosts
from tests.fault.scene import Servers, write_manifests
from tests.fault.traffic import DEVICES, TENANT, TOKEN, register_devices
from tests.support.calls import Caller
from tests.support.host import eventually

pytestmark = pytest.mark.timeout(300)
MESSAGES = 1500


async def test_a_replay_over_killed_hosts_accepts_every_message_once(servers: Servers) -> None:
    await register_devices(servers.dsn, "http://127.0.0.1:1/", "whsec_" + "A" * 32)
    manifests = write_manifests(servers)
    broker = await Broker.connect(servers.nats_url, name="publisher")
    pool = await open_pool(servers.dsn, max_size=2)
    api = Caller(pool)

    async def count(what: str) -> int:
        return int(await pool.fetchval(f"SELECT count(*) FROM {what}"))  # noqa: S608

    try:
        async with two_hosts(servers.nats_url, servers.dsn, manifests, servers.directory) as hosts:
            await asyncio.gather(*(host.start() for host in hosts))
            await asyncio.gather(*(host.wait_until_ready() for host in hosts))
            await broker.publish_many([_misplaced(n) for n in range(MESSAGES)])

            async def are_refused() -> bool:
                return await count("quarantine_events") == MESSAGES

            await eventually(are_refused, "all messages in quarantine", 60)
            # No route, whose jobs would have no receiver.
            await pool.execute("DELETE FROM message_routes")
            await pool.execute("UPDATE device_registry SET site_id = 'elsewhere'")
            replay = await api.ask(create_quarantine_replay, rate_per_s=150)
            for number, host in enumerate([*hosts, *hosts]):
                await _reach(api, replay, MESSAGES * number // 6 + 1)
                await host.kill()
                await host.start()
                # As if the minute had passed after which a replay's interrupted step is made again.
                await pool.execute("UPDATE quarantine_replays SET run_at = now()")
            ended = await _reach(api, replay, MESSAGES)
            assert (ended.refused, ended.under_way, ended.sent) == (0, 0, MESSAGES)
            rows = await pool.fetch("SELECT (metrics->>'n')::int AS n FROM telemetry")
            assert Counter(row["n"] for row in rows) == Counter(range(MESSAGES))
            assert await count("quarantine_events WHERE status <> 'replayed'") == 0
            counts = await pool.fetchrow(
                "SELECT sum(quarantined), sum(written), sum(received - duplicate)"
                " FROM (SELECT * FROM message_counts UNION ALL SELECT * FROM message_count_changes)"
                " AS part"
            )
            assert counts is not None
            assert list(counts) == [0, MESSAGES, MESSAGES]
    finally:
        await pool.close()
        await broker.close()


async def _reach(api: Caller, replay: QuarantineReplay, accepted: int) -> QuarantineReplay:
    """The replay, as soon as so many of its messages are accepted; at the end, when it is done."""

    async def look() -> QuarantineReplay | None:
        try:
            found = await api.ask(get_quarantine_replay, replay_id=replay.replay_id)
        except (OSError, asyncpg.PostgresError):
            return None
        is_there = found.accepted >= accepted and (accepted < MESSAGES or found.status == "done")
        return found if is_there else None

    return await eventually(look, f"{accepted} accepted messages", 120)


def _misplaced(n: int) -> Publication:
    payload = {"site_id": "elsewhere", "provision_token": TOKEN, "metrics": {"n": n}}
    subject = f"telemetry.{TENANT}.dev{n % DEVICES}"
    return Publication(subject, json.dumps(payload).encode(), f"misplaced-{n}")
