"""Hosts are killed while devices come and go: presence is right, and each change is one event."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from runtime.resource.postgres import open_pool
from tests.fault.hosts import HostProcess
from tests.support.host import eventually
from tests.support.ingest import register
from tests.support.many_sessions import ManySessions, many_sessions
from tests.support.presence import Presence
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(600)

MANIFEST = Path(__file__).parents[2] / "manifests" / "presence.yaml"
ROUNDS = 8 * int(os.environ.get("FAULT_ROUNDS", "1"))
DEVICES = 200
# The last ones only send messages.
MOVING = DEVICES - 10


@pytest.fixture
async def presence(postgres_dsn: str) -> AsyncIterator[Presence]:
    pool = await open_pool(postgres_dsn, max_size=4)
    for number in range(DEVICES):
        await register(pool, device=f"d{number}")
    yield Presence(pool)
    await pool.close()


def host(name: str, server: NatsServer, dsn: str, folder: Path) -> HostProcess:
    environment = {
        "NATS_URL": server.url,
        "NATS_SYSTEM_URL": server.system_url,
        "DATABASE_URL": dsn,
        "ADMIN_KEY": "a-key-of-the-test-of-presence",
        "SECRETS_KEYS": "k" * 32,
    }
    return HostProcess(name, [MANIFEST], environment, folder)


async def is_right(presence: Presence, online: set[int]) -> float:
    """Wait until exactly these devices are online; the seconds it took."""
    began_s = time.monotonic()

    async def are() -> bool:
        rows = await presence.pool.fetch(
            "SELECT device_id FROM device_presence WHERE status = 'online'"
        )
        return {row["device_id"] for row in rows} == {f"d{number}" for number in online}

    await eventually(are, "the presence of all devices")
    return time.monotonic() - began_s


async def move(server: ManySessions, online: set[int], chance: random.Random) -> None:
    """Let some devices come and some go, in no order."""
    for number in chance.sample(range(MOVING), 40):
        if number in online:
            online.remove(number)
            await server.disconnect([number])
        else:
            online.add(number)
            await server.connect([number])


async def check_events(presence: Presence) -> None:
    """Each change is one event with a number of its own, and online and offline take turns."""
    messages = await presence.messages()
    assert not [count for count in Counter(map(orjson.dumps, messages)).values() if count > 1]
    by_device: dict[str, list[tuple[int, str]]] = {}
    for message in messages:
        payload = message["payload"]
        entry = (payload["number"], payload["status"])
        by_device.setdefault(message["device_id"], []).append(entry)
    rows = await presence.pool.fetch("SELECT device_id, transitions FROM device_presence")
    assert {row["device_id"]: row["transitions"] for row in rows if row["transitions"]} == {
        device: len(entries) for device, entries in by_device.items()
    }
    for entries in by_device.values():
        statuses = ("online", "offline")
        assert sorted(entries) == [(n + 1, statuses[n % 2]) for n in range(len(entries))]


async def test_one_of_two_hosts_is_killed_again_and_again(
    nats_server: NatsServer, postgres_dsn: str, presence: Presence, tmp_path: Path
) -> None:
    chance = random.Random(ROUNDS)  # noqa: S311 - chooses devices
    hosts = [host(name, nats_server, postgres_dsn, tmp_path) for name in ("one", "two")]
    online: set[int] = set()
    took_s = []
    async with many_sessions(nats_server.system_url) as server:
        try:
            for each in hosts:
                await each.start()
                await each.wait_until_ready()
            await presence.watched()
            for number in range(ROUNDS):
                victim = hosts[number % 2]
                moving = asyncio.create_task(move(server, online, chance))
                await victim.kill()
                await moving
                took_s.append(await is_right(presence, online))
                await victim.start()
                await victim.wait_until_ready()
                await move(server, online, chance)
                took_s.append(await is_right(presence, online))
        finally:
            for each in hosts:
                await each.stop()
    await check_events(presence)
    # The middle one: whatever else stalls the machine is not in most of them.
    assert sorted(took_s)[len(took_s) // 2] < 2, took_s


async def test_what_happens_while_every_host_is_dead_is_found_at_the_next_start(
    nats_server: NatsServer, postgres_dsn: str, presence: Presence, tmp_path: Path
) -> None:
    chance = random.Random(2)  # noqa: S311 - chooses devices
    only = host("only", nats_server, postgres_dsn, tmp_path)
    online: set[int] = set()
    async with many_sessions(nats_server.system_url) as server:
        try:
            await only.start()
            await only.wait_until_ready()
            await presence.watched()
            for sending in range(MOVING, MOVING + 3):
                await move(server, online, chance)
                await only.kill()
                await move(server, online, chance)
                # Noted by a host that took its message, and was killed.
                await presence.see(f"d{sending}")
                online.add(sending)
                await only.start()
                await is_right(presence, online)
        finally:
            await only.stop()
    await check_events(presence)
