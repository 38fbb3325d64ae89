"""Devices on all doors for minutes, attackers beside them, and everything is restarted once.

`make soak` runs it for ten minutes with 1,000 devices. It prints what it has counted.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.fault.endpoint import SECRET
from tests.fault.hosts import HostProcess
from tests.fault.scene import apart
from tests.fault.soak.attackers import Attackers, register_evil
from tests.fault.soak.doors import TENANT, answer_of
from tests.fault.soak.fleet import Addresses, Fleet, register_fleet
from tests.fault.soak.ledger import Ledger
from tests.fault.soak.reckoning import (
    SETTLED_S,
    assert_balanced,
    assert_events_were_delivered,
    assert_no_healthy_device_was_refused,
    settle,
    summary,
)
from tests.support.documentation import free_port
from tests.support.host import eventually
from tests.support.mosquitto import Mosquitto
from tests.support.receiver import Receiver
from tests.support.servers import NatsServer, PostgresServer

SECONDS = float(os.environ.get("SOAK_SECONDS", "24"))
DEVICES = int(os.environ.get("SOAK_DEVICES", "100"))
RATE = float(os.environ.get("SOAK_RATE", "60"))
_TITLE = (
    f"{DEVICES:,} devices, {SECONDS:g} s, {RATE:g} messages a second; host, broker and database"
    " were killed once each"
)
_KEY = "a key of the soak test, long enough"

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(SECONDS + 500)]


class DatingPostgres(PostgresServer):
    """A PostgreSQL that keeps the time of each commit."""

    _options = PostgresServer._options | {"track_commit_timestamp": "on"}


@pytest.fixture
def dating_postgres(server_directory: Path) -> Iterator[DatingPostgres]:
    server = DatingPostgres(server_directory / "postgres")
    yield server
    server.revive()
    server.stop()


async def test_a_fleet_beside_attackers_and_restarts(
    nats: NatsServer,
    mosquitto: Mosquitto,
    dating_postgres: DatingPostgres,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dsn, port = dating_postgres.dsn(), free_port()
    addresses = Addresses(f"http://127.0.0.1:{port}", nats.mqtt_port, mosquitto.port, _KEY, _KEY)
    environment = _environment(nats, dsn, port) | {"MQTT_BRIDGE_URL": mosquitto.url}
    host = HostProcess("host", ["manifests/", "deploy/mosquitto"], environment, tmp_path)
    ledger, stopping = Ledger(), asyncio.Event()

    async def is_served() -> bool:
        return (await answer_of(session, "GET", f"{addresses.gateway}/healthz"))[0] == 200

    async def is_bridged() -> bool:
        # Before its first session nobody keeps what devices send to Mosquitto.
        return "The MQTT bridge is connected." in host.log

    connector = aiohttp.TCPConnector(limit=0)
    async with Receiver() as endpoint, aiohttp.ClientSession(connector=connector) as session:
        fleet = Fleet(addresses, session, ledger, count=DEVICES, rate=RATE)
        attackers = Attackers(addresses, nats.anonymous_url, fleet.devices, ledger)
        try:
            await host.start()
            await host.wait_until_ready()
            await eventually(is_bridged, "the MQTT bridge")
            await register_fleet(dsn, fleet.devices, {"url": endpoint.url, "secret": SECRET})
            await register_evil(dsn, endpoint.url)
            traffic = asyncio.gather(fleet.run(stopping), attackers.run(stopping))
            await _restart_all(host, nats, dating_postgres, is_served)
            stopping.set()
            await _end(traffic, ledger)
            await settle(nats, dsn, ledger)
            with capsys.disabled():
                sys.stdout.write(f"\n{_TITLE}\n{await summary(dsn, ledger)}")
            await assert_balanced(nats, dsn, ledger)
            await assert_no_healthy_device_was_refused(dsn, ledger)
            await assert_events_were_delivered(dsn, endpoint)
            await _assert_commands_succeeded(addresses, session, ledger)
        finally:
            fleet.stop()
            await host.stop()


def _environment(nats: NatsServer, dsn: str, port: int) -> dict[str, str]:
    return {
        "NATS_URL": nats.url,
        "NATS_SYSTEM_URL": nats.system_url,
        "NATS_AUTH_ISSUER": nats.issuer.seed,
        "DATABASE_URL": dsn,
        "ADMIN_KEY": _KEY,
        "EMQX_BRIDGE_KEY": _KEY,
        "MQTT_ADMIN_PASSWORD": nats.mqtt_password,
        "RUNTIME_REGISTRATION_KEY": _KEY,
        "GATEWAY_PORT": str(port),
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }


async def _restart_all(
    host: HostProcess,
    nats: NatsServer,
    postgres: PostgresServer,
    is_served: Callable[[], Awaitable[bool]],
) -> None:
    """Kill host, broker and database, each in a quarter of its own."""
    quarter_s = SECONDS / 4
    await asyncio.sleep(quarter_s)
    await host.kill()
    await host.start()
    # A host that finds no server when it starts ends, and here nothing starts it again.
    await eventually(is_served, "a host that serves again", 60)
    await asyncio.sleep(quarter_s)
    await apart(nats.kill)
    await apart(nats.start)
    await asyncio.sleep(quarter_s)
    await apart(postgres.kill)
    await apart(postgres.start)
    await asyncio.sleep(quarter_s)


async def _end(traffic: "asyncio.Future[tuple[None, None]]", ledger: Ledger) -> None:
    """Return when every message that was begun is stored."""
    try:
        async with asyncio.timeout(SETTLED_S):
            await traffic
    except TimeoutError:
        raise AssertionError(f"not stored: {ledger.under_way}") from None


async def _assert_commands_succeeded(
    addresses: Addresses, session: aiohttp.ClientSession, ledger: Ledger
) -> None:
    """Return when every command is answered by its device."""
    left = dict(ledger.commands)

    async def all_succeeded() -> bool:
        for command, device in list(left.items()):
            url = f"{addresses.gateway}/api/v1/tenants/{TENANT}/devices/{device}/commands/{command}"
            status, text = await answer_of(session, "GET", url, headers=addresses.admin)
            if status == 200 and '"succeeded"' in text:
                del left[command]
        return not left

    await eventually(all_succeeded, "the answers to all commands", SETTLED_S)
    assert not set(ledger.executed) - set(ledger.commands), "a forged command was executed"
