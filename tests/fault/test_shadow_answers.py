"""Each request about a shadow counts once and is answered, whatever is killed meanwhile."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runtime.broker.connection import Broker
from runtime.errors import Unavailable
from tests.fault.endpoint import SECRET
from tests.fault.hosts import HostProcess, two_hosts
from tests.fault.scene import apart
from tests.fault.traffic import TENANT, TOKEN, register_devices
from tests.support.host import eventually
from tests.support.servers import NatsServer, PostgresServer

pytestmark = pytest.mark.timeout(600)

REQUESTS = 120
DEVICES = ("dev0", "dev1", "dev2")
MANIFESTS = [
    Path(f"manifests/{name}.yaml") for name in ("commands", "routes", "shadow", "telemetry")
]


def device_of(number: int) -> str:
    return DEVICES[number % len(DEVICES)]


async def send(broker: Broker, number: int) -> None:
    """Store a request, repeated until the stream confirms it."""
    state = {"desired": {"n": number}, "reported": {f"k{number}": number}}
    content = {"state": state, "clientToken": f"c{number}", "provision_token": TOKEN}
    subject = f"shadow.{TENANT}.{device_of(number)}.update"

    async def store() -> bool:
        try:
            await broker.publish(subject, json.dumps(content).encode(), msg_id=f"request {number}")
        except Unavailable:
            return False
        return True

    await eventually(store, f"request {number}", 120)


async def test_no_delta_is_lost_when_hosts_and_servers_die(
    nats: NatsServer, postgres: PostgresServer, postgres_dsn: str, tmp_path: Path
) -> None:
    broker = await Broker.connect(nats.url, name="devices")
    await register_devices(postgres_dsn, "http://127.0.0.1:1/", SECRET)
    async with two_hosts(
        nats.url, postgres_dsn, MANIFESTS, tmp_path, NATS_SYSTEM_URL=nats.system_url
    ) as hosts:
        await asyncio.gather(*(host.start() for host in hosts))
        await asyncio.gather(*(host.wait_until_ready() for host in hosts))
        faults: dict[int, Callable[[], Awaitable[None]]] = {
            REQUESTS // 6: partial(kill, hosts[0]),
            2 * REQUESTS // 6: partial(apart, nats.kill),
            2 * REQUESTS // 6 + 2: partial(apart, nats.start),
            3 * REQUESTS // 6: partial(kill, hosts[1]),
            4 * REQUESTS // 6: partial(apart, postgres.kill),
            4 * REQUESTS // 6 + 2: partial(apart, postgres.start),
            5 * REQUESTS // 6: partial(kill, hosts[0]),
        }
        async with asyncio.TaskGroup() as tasks:
            for number in range(REQUESTS):
                if number in faults:
                    await faults[number]()
                task = tasks.create_task(send(broker, number))
                # The next fault comes while about two of them are under way.
                await asyncio.wait({task}, timeout=0.2)
        await eventually(lambda: all_applied(postgres_dsn), "every request's effect", 200)
        await eventually(lambda: all_answered(broker), "every request's answer", 200)
        desired = await read_desired(postgres_dsn)
        for device in DEVICES:
            delta = await last(broker, device)
            assert (delta["version"], delta["state"]) == desired[device]
    await broker.close()


async def kill(host: HostProcess) -> None:
    await host.kill()
    await host.start()


async def all_applied(dsn: str) -> bool:
    """Whether each device's version is the number of its requests, with the values of all."""
    try:
        database = await asyncpg.connect(dsn)
    except (OSError, asyncpg.PostgresError):
        return False
    rows = await database.fetch("SELECT device_id, version, reported::text FROM device_shadows")
    refused = await database.fetchval("SELECT count(*) FROM quarantine_events")
    await database.close()
    assert refused == 0
    for row in rows:
        values = json.loads(row["reported"])
        assert row["version"] <= REQUESTS // len(DEVICES)
        assert all(device_of(value) == row["device_id"] for value in values.values())
        if not len(values) == row["version"] == REQUESTS // len(DEVICES):
            return False
    return len(rows) == len(DEVICES)


async def read_desired(dsn: str) -> dict[str, Any]:
    """Version and desired state of each device, of which it has reported nothing."""
    database = await asyncpg.connect(dsn)
    rows = await database.fetch("SELECT device_id, version, desired::text FROM device_shadows")
    await database.close()
    return {row["device_id"]: (row["version"], json.loads(row["desired"])) for row in rows}


async def all_answered(broker: Broker) -> bool:
    """Whether the stream has an answer to each request."""
    request = {"subjects_filter": "downlinks.*.*.shadow.update.accepted.*"}
    found = await broker.api("STREAM.INFO.DOWNLINKS", request)
    return len(found["state"].get("subjects") or {}) == REQUESTS


async def last(broker: Broker, device: str) -> dict[str, Any]:
    """The newest delta of a device."""
    request = {"last_by_subj": f"downlinks.{TENANT}.{device}.shadow.delta"}
    answer = await broker.api("STREAM.MSG.GET.DOWNLINKS", request)
    content: dict[str, Any] = json.loads(base64.b64decode(answer["message"]["data"]))
    return content
