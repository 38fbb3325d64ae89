"""Devices with a certificate and no token, at nats-server's MQTT listener: shipped manifests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runtime import manifest
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from runtime.resource.postgres import open_pool
from tests.support.documentation import ROOT
from tests.support.gateway import REGISTRATION_KEY
from tests.support.host import eventually
from tests.support.ingest import TOKEN, register
from tests.support.mqtt import MqttSession
from tests.support.tls_server import TlsServer, add_certificate

_NAMES = ("telemetry", "routes", "shadow", "commands", "unmapped", "device_auth")
READING = {"site_id": "s1", "metrics": {"t": 1.5}}
SENT: dict[str, dict[str, Any]] = {
    "telemetry": READING,
    "metrics": READING,
    "shadow/reported": {"reported": {"fan": 1}},
    "commands/ack": {"command_id": "c1", "status": "succeeded"},
}


@pytest.fixture
async def pool(postgres_dsn: str, tls_server: TlsServer) -> AsyncIterator[Any]:
    opened = await open_pool(postgres_dsn, max_size=2)
    for device in ("dev1", "dev2"):
        await register(opened, device=device)
    await opened.execute(
        "INSERT INTO device_commands"
        " (command_id, tenant_id, device_id, name, expires_at, timeout_s)"
        " VALUES ('c1', 'test', 'dev1', 'reboot', '2100-01-01Z', 60)"
    )
    await add_certificate(opened, tls_server.certificates / "test" / "dev1.pem", "dev1")
    yield opened
    await opened.close()


@pytest.fixture
async def host(
    tls_server: TlsServer, postgres_dsn: str, pool: Any, request: pytest.FixtureRequest
) -> AsyncIterator[Host]:
    environment = {"SECRETS_KEYS": "s" * 32, "NATS_AUTH_ISSUER": tls_server.issuer.seed}
    declared = manifest.read(
        [ROOT / "manifests" / f"{name}.yaml" for name in _NAMES],
        {**environment, "DEVICE_CERTIFICATES": request.param},
    )
    addresses = Addresses(tls_server.url, postgres_dsn, tls_server.system_url)
    options = HostOptions(registration_key=REGISTRATION_KEY)
    host = Host(declared, load_all(declared), addresses, Metrics("0.0.0"), options)
    await host.start()
    yield host
    await host.drain(10.0)


def connect(sessions: ExitStack, server: TlsServer, device: str, token: str | None) -> MqttSession:
    """A session with the certificate of `device`, or with a token as well, which then counts."""
    folder: Path = server.certificates
    session = MqttSession(server.mqtt_port, f"test/{device}", token, client_id=f"test/{device}")
    session.use_tls(folder / "localhost.pem", folder / "test" / f"{device}.pem")
    sessions.enter_context(session)
    assert session.connected == "Success"
    return session


def send(session: MqttSession, device: str, **more: Any) -> None:
    for kind, payload in SENT.items():
        session.publish(f"tenant/test/device/{device}/{kind}", json.dumps({**payload, **more}))


async def results(pool: Any) -> dict[str, int]:
    queries = {
        "rows": "SELECT count(*) FROM telemetry",
        "reports": "SELECT count(*) FROM device_shadows WHERE version = 1",
        "answers": "SELECT count(*) FROM device_command_acks",
    }
    return {name: await pool.fetchval(query) for name, query in queries.items()}


async def reasons(pool: Any) -> list[str]:
    rows = await pool.fetch("SELECT reason FROM quarantine_events ORDER BY reason")
    return [row["reason"] for row in rows]


@pytest.mark.parametrize("host", ["optional", "required"], indirect=True)
async def test_a_certificate_proves_what_comes_by_its_connection(
    tls_server: TlsServer, pool: Any, host: Host
) -> None:
    with ExitStack() as sessions:
        session = await asyncio.to_thread(connect, sessions, tls_server, "dev1", None)
        await asyncio.to_thread(send, session, "dev1")

        async def is_stored() -> bool:
            return await results(pool) == {"rows": 2, "reports": 1, "answers": 1}

        await eventually(is_stored, "all messages")
    assert await reasons(pool) == []


@pytest.mark.parametrize("host", ["off", "optional"], indirect=True)
async def test_without_a_certificate_of_the_device_each_message_needs_its_token(
    tls_server: TlsServer, pool: Any, host: Host
) -> None:
    with ExitStack() as sessions:
        # Its certificate is not registered, so it logs in by its token.
        session = await asyncio.to_thread(connect, sessions, tls_server, "dev2", TOKEN)
        await asyncio.to_thread(send, session, "dev2")

        async def are_refused() -> bool:
            return len(await reasons(pool)) == len(SENT)

        await eventually(are_refused, "all refusals")
        assert set(await reasons(pool)) <= {"TOKEN_MISSING", "AUTH_FAILED"}
        topic = "tenant/test/device/dev2/telemetry"
        with_token = json.dumps({**READING, "provision_token": TOKEN})
        await asyncio.to_thread(session.publish, topic, with_token)

        async def is_stored() -> bool:
            return (await results(pool))["rows"] == 1

        await eventually(is_stored, "the message with a token")


@pytest.mark.parametrize("host", ["optional"], indirect=True)
async def test_nobody_but_the_listener_speaks_for_a_certificate(
    tls_server: TlsServer, pool: Any, host: Host
) -> None:
    with ExitStack() as sessions:
        session = await asyncio.to_thread(connect, sessions, tls_server, "dev2", TOKEN)
        # Of another device, which has a certificate: the listener takes none of these.
        await asyncio.to_thread(send, session, "dev1")
        await asyncio.to_thread(session.publish, "telemetry/test/dev1", json.dumps(READING))
        own = json.dumps({**READING, "provision_token": TOKEN})
        await asyncio.to_thread(session.publish, "tenant/test/device/dev2/telemetry", own)

        async def has_come() -> bool:
            return (await results(pool))["rows"] > 0

        await eventually(has_come, "the device's own message")
    assert await results(pool) == {"rows": 1, "reports": 0, "answers": 0}
    assert await reasons(pool) == []
