"""Devices on all doors for minutes, attackers beside them, and everything is restarted once.

`make soak` runs it for ten minutes with 1,000 devices. It prints what it has counted.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from functions.domain.message_counts import MessageCounts, counts_of_all, counts_of_tenant
from functions.domain.topics import DOWNLINKS
from runtime.broker.connection import Broker
from tests.fault.books import read_books
from tests.fault.endpoint import SECRET
from tests.fault.hosts import HostProcess
from tests.fault.scene import apart
from tests.fault.soak.attackers import EVIL, Attackers, register_evil
from tests.fault.soak.doors import TENANT, answer_of
from tests.fault.soak.fleet import Addresses, Fleet, register_fleet
from tests.fault.soak.ledger import REPEATS, Ledger
from tests.support.documentation import free_port
from tests.support.host import eventually
from tests.support.receiver import Receiver
from tests.support.servers import NatsServer, PostgresServer

SECONDS = float(os.environ.get("SOAK_SECONDS", "24"))
DEVICES = int(os.environ.get("SOAK_DEVICES", "100"))
RATE = float(os.environ.get("SOAK_RATE", "60"))
STREAMS = ("TELEMETRY", "SHADOW", "COMMANDS", "UNMAPPED")
_SETTLED_S = 120.0
_KEY = "a key of the soak test, long enough"

pytestmark = pytest.mark.timeout(SECONDS + 500)


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
    dating_postgres: DatingPostgres,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dsn, port = dating_postgres.dsn(), free_port()
    addresses = Addresses(f"http://127.0.0.1:{port}", nats.mqtt_port, _KEY, _KEY)
    host = HostProcess("host", ["manifests/"], _environment(nats, dsn, port), tmp_path)
    ledger, stopping = Ledger(), asyncio.Event()

    async def is_served() -> bool:
        return (await answer_of(session, "GET", f"{addresses.gateway}/healthz"))[0] == 200

    connector = aiohttp.TCPConnector(limit=0)
    async with Receiver() as endpoint, aiohttp.ClientSession(connector=connector) as session:
        fleet = Fleet(addresses, session, ledger, count=DEVICES, rate=RATE)
        attackers = Attackers(addresses, nats.anonymous_url, fleet.devices, ledger)
        try:
            await host.start()
            await host.wait_until_ready()
            await register_fleet(dsn, fleet.devices, {"url": endpoint.url, "secret": SECRET})
            await register_evil(dsn, endpoint.url)
            traffic = asyncio.gather(fleet.run(stopping), attackers.run(stopping))
            await _restart_all(host, nats, dating_postgres, is_served)
            stopping.set()
            await _end(traffic, ledger)
            await _settle(nats, dsn)
            with capsys.disabled():
                sys.stdout.write(await _summary(dsn, ledger))
            await _assert_balanced(nats, dsn, ledger)
            await _assert_no_healthy_device_was_refused(dsn, ledger)
            await _assert_events_were_delivered(dsn, endpoint)
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
        async with asyncio.timeout(_SETTLED_S):
            await traffic
    except TimeoutError:
        raise AssertionError(f"not stored: {ledger.under_way}") from None


async def _settle(nats: NatsServer, dsn: str) -> None:
    """Return when no message waits and every job is delivered or given up."""
    broker = await Broker.connect(nats.url, name="soak")

    async def is_settled() -> bool:
        for stream in STREAMS:
            found = await broker.api(f"CONSUMER.LIST.{stream}")
            if any(one["num_pending"] or one["num_ack_pending"] for one in found["consumers"]):
                return False
        return (await read_books(dsn)).waiting == 0

    try:
        await eventually(is_settled, "the end of everything", _SETTLED_S)
    finally:
        await broker.close()


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

    await eventually(all_succeeded, "the answers to all commands", _SETTLED_S)
    assert not set(ledger.executed) - set(ledger.commands), "a forged command was executed"


async def _summary(dsn: str, ledger: Ledger) -> str:
    """What was counted, and how long a reading took from its device to its row."""
    rows = await _fetch(
        dsn,
        "SELECT msg_type, count(*),"
        " percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY took_s), max(took_s)"
        " FROM (SELECT msg_type, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
        "  - (metrics->>'sent_s')::float8 AS took_s FROM telemetry WHERE tenant_id = $1) AS row"
        " GROUP BY ROLLUP (msg_type) ORDER BY 1",
        TENANT,
    )
    lines = [
        "",
        f"{DEVICES:,} devices, {SECONDS:g} s, {RATE:g} messages a second;"
        " host, broker and database were killed once each",
        *(
            f"  {kind or 'all rows':12} {count:8,} rows; sent to committed: median"
            f" {median_s * 1000:.0f} ms, p99 {p99_s * 1000:.0f} ms, most {most_s:.1f} s"
            for kind, count, (median_s, p99_s), most_s in rows
        ),
        *(
            f"  by {door}, {kind}: {count:,} stored"
            for (door, kind), count in sorted(ledger.messages.items())
        ),
        f"  sent again, as the platform was away: {dict(ledger.again)}",
        f"  commands: {len(ledger.commands)} sent, {len(ledger.executed)} executed",
        f"  garbage: {dict(ledger.garbage)}",
        f"  attacks: {dict(ledger.attacks)}",
        "",
    ]
    return "\n".join(lines)


async def _assert_balanced(nats: NatsServer, dsn: str, ledger: Ledger) -> None:
    """Each stored message is a row or in quarantine; each confirmed reading has its row."""
    stored = await _count_received(nats)
    database = await asyncpg.connect(dsn)
    try:
        books: MessageCounts = await counts_of_all(database)  # type: ignore[arg-type]
        ours = await counts_of_tenant(database, TENANT)  # type: ignore[arg-type]
        evil = await counts_of_tenant(database, EVIL)  # type: ignore[arg-type]
    finally:
        await database.close()
    for each in (books, ours, evil):
        ended = each.written + each.quarantined + each.refused
        assert each.received == ended + each.duplicate, each
    assert books.written + books.quarantined + books.refused == stored, (books, stored)
    rows = await _fetch(
        dsn,
        "SELECT device_id, (metrics->>'n')::int AS n, count(*) FROM telemetry"
        " WHERE tenant_id = $1 AND device_id LIKE 'dev-%' GROUP BY 1, 2",
        TENANT,
    )
    by_reading = {(device, number): count for device, number, count in rows}
    for device, numbers in ledger.stored.items():
        lost = [number for number in numbers if (device, number) not in by_reading]
        assert not lost, f"{device} ({ledger.doors[device]}) lost {lost[:10]}"
    doubled = [
        key
        for key, count in by_reading.items()
        if count > 1 and ledger.doors[key[0]] not in REPEATS
    ]
    assert not doubled, doubled[:10]


async def _count_received(nats: NatsServer) -> int:
    """Messages in the streams of devices, without those that the platform sends to devices."""
    broker = await Broker.connect(nats.url, name="soak")
    try:
        found = [await broker.api(f"STREAM.INFO.{stream}") for stream in STREAMS]
        received: int = sum(info["state"]["messages"] for info in found)
        for kind in DOWNLINKS:
            subjects = f"tenant.*.device.*.{kind.replace('/', '.')}"
            info = await broker.api("STREAM.INFO.UNMAPPED", {"subjects_filter": subjects})
            received -= sum((info["state"].get("subjects") or {}).values())
    finally:
        await broker.close()
    return received


async def _assert_no_healthy_device_was_refused(dsn: str, ledger: Ledger) -> None:
    assert not ledger.refused, ledger.refused[:10]
    assert not ledger.breaches, ledger.breaches[:10]
    rows = await _fetch(
        dsn,
        "SELECT reason, count(*) FROM quarantine_events"
        " WHERE tenant_id = $1 AND device_id LIKE 'dev-%' GROUP BY 1",
        TENANT,
    )
    # These are the attackers', who use the devices' names.
    assert {reason for reason, _ in rows} <= {"TOKEN_INVALID"}, rows


async def _assert_events_were_delivered(dsn: str, endpoint: Receiver) -> None:
    [(events,)] = await _fetch(
        dsn, "SELECT count(*) FROM telemetry WHERE tenant_id = $1 AND msg_type = 'event'", TENANT
    )
    jobs = {request.headers["webhook-id"] for request in endpoint.requests}
    assert len(jobs) == events


async def _fetch(dsn: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
    database = await asyncpg.connect(dsn)
    try:
        return await database.fetch(statement, *arguments)
    finally:
        await database.close()
