"""Commands reach devices at nats-server's MQTT listener, and count as sent when they have."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from functions.commands.creating import CommandSettings, create_command
from functions.domain.downlinks import NewDownlink, add_downlinks
from runtime.broker.connection import Broker
from runtime.host import Host
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.host import Journal, eventually, running_host
from tests.support.ingest import TOKEN, register
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

DEVICES = ("dev1", "d.1")
STREAMS: dict[str, Any] = {
    "DOWNLINKS": {"subjects": ["downlinks.>"], "storage": "memory", "max_msgs_per_subject": 1}
}


def functions(server: NatsServer) -> dict[str, Any]:
    return {
        "device_auth": {
            "handler": "functions.device_auth:authorize",
            "endpoint": {"service": "device_auth", "subject": "$SYS.REQ.USER.AUTH"},
            "uses": ["postgres", "nats_system"],
            "settings": {"issuer": server.issuer.seed},
        },
        "hand_over_jobs": {
            "handler": "functions.route_delivery.hand_over:hand_over_jobs",
            "service": True,
            "uses": ["postgres"],
        },
        "send_downlinks": {
            "handler": "functions.downlinks.listener:send_downlinks",
            "consumer": {"stream": "DOWNLINKS", "durable": "listener"},
            "batch": {"size": 50, "wait": "5ms"},
            "uses": ["nats_system"],
        },
        "mark_commands_sent": {
            "handler": "functions.commands.endpoints:mark_commands_sent",
            "endpoint": {"service": "management", "subject": "management.commands.sent"},
            "uses": ["postgres"],
        },
        "tend_commands": {
            "handler": "functions.commands.tending:tend_commands",
            "schedule": {"every": "1s"},
            "uses": ["postgres"],
        },
    }


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=4)
    for device in DEVICES:
        await register(pool, device=device)
    yield Caller(pool, settings=CommandSettings())
    await pool.close()


@asynccontextmanager
async def serving(server: NatsServer, dsn: str, **options: Any) -> AsyncIterator[Host]:
    given = {"functions": functions(server), "nats_system_url": server.system_url, **options}
    async with running_host(server.url, streams=STREAMS, database_url=dsn, **given) as running:
        yield running


@pytest.fixture
async def clean(broker: Broker) -> AsyncIterator[None]:
    """Deletes the stream in the end."""
    yield
    await broker.api("STREAM.DELETE.DOWNLINKS", None)


@pytest.fixture
async def host(
    nats_server: NatsServer, postgres_dsn: str, api: Caller, clean: None
) -> AsyncIterator[Host]:
    async with serving(nats_server, postgres_dsn) as running:
        yield running


@pytest.fixture
def sessions() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def connect(sessions: ExitStack, server: NatsServer, device: str) -> MqttSession:
    name = f"test/{device}"
    session = MqttSession(server.mqtt_port, name, TOKEN, client_id=name.replace(".", "//"))
    await asyncio.to_thread(sessions.enter_context, session)
    assert session.connected == "Success"
    await asyncio.to_thread(session.subscribe, f"tenant/test/device/{device}/#")
    return session


async def create(api: Caller, device: str = "dev1", **fields: Any) -> str:
    request = {"tenant_id": "test", "device_id": device, "name": "reboot", **fields}
    return (await api.ask(create_command, **request)).command_id


async def got(session: MqttSession) -> tuple[str, Any]:
    message = await asyncio.to_thread(session.received.get, timeout=60)
    return message.topic, json.loads(message.payload)


async def becomes(api: Caller, command_id: str, status: str) -> None:
    async def look() -> bool:
        found = await api.pool.fetchval(
            "SELECT status FROM device_commands WHERE command_id = $1", command_id
        )
        return bool(found == status)

    await eventually(look, f"a command that is {status}")


@pytest.mark.parametrize("device", DEVICES)
async def test_a_connected_device_gets_its_command_which_is_sent_then(
    nats_server: NatsServer, host: Host, api: Caller, sessions: ExitStack, device: str
) -> None:
    session = await connect(sessions, nats_server, device)
    command_id = await create(api, device, arguments={"delay_s": 5})
    topic, content = await got(session)
    assert topic == f"tenant/test/device/{device}/commands"
    assert (content["command_id"], content["arguments"]) == (command_id, {"delay_s": 5})
    await becomes(api, command_id, "sent")


async def test_a_command_stays_queued_while_its_device_is_away_and_comes_when_it_connects(
    nats_server: NatsServer, host: Host, api: Caller, broker: Broker, sessions: ExitStack
) -> None:
    # Another device's session does not make it sent, nor does anybody who listens in.
    other = await connect(sessions, nats_server, "d.1")
    heard = Journal()
    await broker.subscribe("tenant.test.device.dev1.commands", heard.add)
    command_id = await create(api)
    await api.pool.execute("UPDATE device_commands SET next_send_at = now() + interval '1 hour'")
    await heard.wait(1)
    marker = await create(api, "d.1")
    await got(other)
    await becomes(api, marker, "sent")
    await becomes(api, command_id, "queued")

    session = await connect(sessions, nats_server, "dev1")
    _, content = await got(session)
    assert content["command_id"] == command_id
    await becomes(api, command_id, "sent")


async def test_what_is_cancelled_late_or_for_nobody_is_not_sent(
    nats_server: NatsServer, host: Host, api: Caller, broker: Broker, sessions: ExitStack
) -> None:
    session = await connect(sessions, nats_server, "dev1")
    late = {"command_id": "late", "expires_at": "2020-01-01T00:00:00+00:00"}
    for subject, data in {
        "downlinks.test.dev1.commands.late": json.dumps(late).encode(),
        "downlinks.test.dev1.telemetry": b"{}",
        "downlinks.test": b"",
    }.items():
        await broker.publish(subject, data)
    async with api.pool.acquire() as connection, connection.transaction():
        delta = NewDownlink("test", "dev1", "shadow/delta", b'{"state": {}}', "delta-1")
        await add_downlinks(connection, [delta])
    assert await got(session) == ("tenant/test/device/dev1/shadow/delta", {"state": {}})
    assert session.received.empty()


async def test_a_host_without_the_system_account_sends_and_leaves_commands_queued(
    nats_server: NatsServer, postgres_dsn: str, api: Caller, clean: None, broker: Broker
) -> None:
    heard = Journal()
    await broker.subscribe("tenant.test.device.dev1.commands", heard.add)
    some = {name: functions(nats_server)[name] for name in ("hand_over_jobs", "send_downlinks")}
    async with serving(nats_server, postgres_dsn, functions=some, nats_system_url=None):
        command_id = await create(api)
        [message] = await heard.wait(1)
    assert json.loads(message.data)["command_id"] == command_id
    await becomes(api, command_id, "queued")
