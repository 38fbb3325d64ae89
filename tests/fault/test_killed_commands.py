"""Commands reach their devices and every transition its webhook, whatever is killed meanwhile."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from runtime.broker.connection import Broker
from runtime.errors import NoAnswer, RequestFailed, Unavailable
from tests.fault.device import Device
from tests.fault.endpoint import SECRET
from tests.fault.hosts import HostProcess
from tests.fault.scene import apart
from tests.fault.traffic import register_devices
from tests.support.host import eventually
from tests.support.receiver import Answer, Received, Receiver
from tests.support.servers import NatsServer, PostgresServer

pytestmark = pytest.mark.timeout(600)

COMMANDS = 60
IN_ORDER = "dev1"
MANIFESTS = [
    Path(f"manifests/{name}.yaml") for name in ("commands", "device_auth", "routes", "telemetry")
]
_OURS = 500
_REFUSED = (NoAnswer, RequestFailed, Unavailable)


class EventEndpoint(Receiver):
    """Records the versions of each command of which it hears, by the ids of the webhooks."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))

    def answer_to(self, request: Received) -> Answer:
        event = json.loads(request.body)
        assert event["type"] == "device.commands.state"
        payload = event["data"]["payload"]
        self.heard[payload["command_id"]][payload["version"]].add(request.headers["webhook-id"])
        return Answer()


async def give(broker: Broker, number: int) -> None:
    """Ask for a command until somebody says that it exists."""
    device = f"dev{number % 3}"
    content = {"tenant_id": "fault", "device_id": device, "name": "run", "timeout_s": 3600}
    request = {**content, "command_id": f"c{number}", "in_order": device == IN_ORDER}

    async def ask() -> bool:
        try:
            await broker.request("management.commands.create", json.dumps(request).encode())
        except _REFUSED as failure:
            if isinstance(failure, RequestFailed) and failure.code < _OURS:
                raise
            return False
        return True

    await eventually(ask, f"command {number}", 120)


async def test_commands_and_their_events_survive_kills_of_host_nats_and_postgresql(
    nats: NatsServer, postgres: PostgresServer, postgres_dsn: str, tmp_path: Path
) -> None:
    broker = await Broker.connect(nats.url, name="management")
    async with EventEndpoint() as endpoint:
        await register_devices(postgres_dsn, endpoint.url, SECRET)
        await ask_for_events(postgres_dsn)
        host = HostProcess(
            "host",
            MANIFESTS,
            {
                "NATS_URL": nats.url,
                "NATS_SYSTEM_URL": nats.system_url,
                "NATS_AUTH_ISSUER": nats.issuer.seed,
                "DATABASE_URL": postgres_dsn,
                "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
                "JOB_REPEAT_WAIT_S": "1",
            },
            tmp_path,
        )
        try:
            await host.start()
            await host.wait_until_ready()
            with ExitStack() as stack:
                devices = [
                    await asyncio.to_thread(stack.enter_context, Device(nats.mqtt_port, f"dev{n}"))
                    for n in range(3)
                ]
                faults: dict[int, Callable[[], Awaitable[None]]] = {
                    COMMANDS // 5: partial(kill_host, host),
                    2 * COMMANDS // 5: partial(apart, nats.kill),
                    2 * COMMANDS // 5 + 2: partial(apart, nats.start),
                    3 * COMMANDS // 5: partial(apart, postgres.kill),
                    3 * COMMANDS // 5 + 2: partial(apart, postgres.start),
                }
                async with asyncio.TaskGroup() as tasks:
                    for number in range(COMMANDS):
                        if number in faults:
                            await faults[number]()
                        task = tasks.create_task(give(broker, number))
                        # The next fault comes while about two of them are under way.
                        await asyncio.wait({task}, timeout=0.2)
                await eventually(lambda: all_succeeded(postgres_dsn), "the end of all", 200)
                await eventually(lambda: all_heard(postgres_dsn, endpoint), "all events", 200)
            for number, device in enumerate(devices):
                wanted = {f"c{each}" for each in range(COMMANDS) if each % 3 == number}
                assert (set(device.executed), len(device.executed)) == (wanted, len(wanted))
            assert await order_of(postgres_dsn) == devices[1].executed
        finally:
            await host.stop()
            await broker.close()


async def kill_host(host: HostProcess) -> None:
    """Kill the host, and start it; a host that finds no server at its start would end."""
    await host.kill()
    await host.start()

    async def is_ready_again() -> bool:
        return host.log.count('"event":"Ready"') > 1

    await eventually(is_ready_again, "a host that is ready again", 120)


async def ask_for_events(dsn: str) -> None:
    """Have the route take events of commands in place of readings."""
    database = await asyncpg.connect(dsn)
    await database.execute(
        "UPDATE message_routes SET payload_filter = NULL,"
        " topic_filter = 'tenant/fault/device/+/commands/state'"
    )
    await database.close()


async def all_succeeded(dsn: str) -> bool:
    database = await asyncpg.connect(dsn)
    rows = await database.fetch("SELECT status, count(*) FROM device_commands GROUP BY status")
    await database.close()
    found = {row["status"]: row["count"] for row in rows}
    assert found.keys() <= {"queued", "sent", "succeeded"}, found
    return found == {"succeeded": COMMANDS}


async def all_heard(dsn: str, endpoint: EventEndpoint) -> bool:
    """Whether the receiver heard of each transition, each under one id alone."""
    database = await asyncpg.connect(dsn)
    rows = await database.fetch("SELECT command_id, version FROM device_commands")
    await database.close()
    for row in rows:
        heard = endpoint.heard[row["command_id"]]
        assert all(len(ids) == 1 for ids in heard.values()), heard
        assert max(heard, default=0) <= row["version"]
        if heard.keys() != set(range(1, row["version"] + 1)):
            return False
    return True


async def order_of(dsn: str) -> list[str]:
    """The commands of the device in order, as they were made."""
    database = await asyncpg.connect(dsn)
    rows = await database.fetch(
        "SELECT command_id FROM device_commands WHERE device_id = $1 ORDER BY number", IN_ORDER
    )
    await database.close()
    return [row["command_id"] for row in rows]
