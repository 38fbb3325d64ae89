"""Only a server that no host hears is gone: a host that is cut off ends no session."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import asyncpg
import pytest
import structlog

from functions.presence.server_watch import ServerWatch
from functions.presence.servers import find_servers
from functions.presence.store import Changes, settle
from runtime.broker.system_account import SystemAccount
from runtime.resource.postgres import open_pool
from tests.support.host import eventually
from tests.support.ingest import register
from tests.support.presence import Presence
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer

ROUNDS = 5


class Watches:
    """Hosts' watches of servers, on one database."""

    def __init__(self, presence: Presence, stack: AsyncExitStack) -> None:
        self.presence = presence
        self._stack = stack

    async def system(self, url: str) -> SystemAccount:
        account = await SystemAccount.connect(url)
        self._stack.push_async_callback(account.close)
        return account

    def watch(self, system: SystemAccount) -> ServerWatch:
        log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger()
        return ServerWatch(self.presence.pool, log, system, account="$G", apply=self.apply)

    async def apply(self, changes: Changes) -> None:
        async with self.presence.pool.acquire() as connection, connection.transaction():
            await settle(connection, changes, timeout_s=600, horizon=datetime.now(UTC))

    async def open_session(self, system: SystemAccount, device: str) -> str:
        """Note a session of the only server that this connection reaches; its id."""
        [server_id] = await find_servers(system)
        await self.presence.pool.execute(
            "INSERT INTO device_presence (tenant_id, device_id, status, last_seen_at)"
            " VALUES ('test', $1, 'online', now())",
            device,
        )
        await self.presence.pool.execute(
            "INSERT INTO device_sessions (server_id, connection_id, tenant_id, device_id,"
            " started_at) VALUES ($1, 1, 'test', $2, now())",
            *(server_id, device),
        )
        return server_id

    async def is_online(self, device: str) -> bool:
        row = await self.presence.of(device)
        return bool(row["status"] == "online")


@pytest.fixture
async def watches(postgres_dsn: str) -> AsyncIterator[Watches]:
    pool = await open_pool(postgres_dsn, max_size=4)
    for device in ("dev1", "dev2"):
        await register(pool, device=device)
    async with AsyncExitStack() as stack:
        yield Watches(Presence(pool), stack)
    await pool.close()


async def test_a_host_without_its_system_connection_ends_no_session(
    nats_server: NatsServer, watches: Watches
) -> None:
    async with Proxy(nats_server.port) as proxy:
        system = await watches.system(re.sub(r":\d+$", f":{proxy.port}", nats_server.system_url))
        watch = watches.watch(system)
        await watches.open_session(system, "dev1")
        await watch.run_once()
        proxy.cut()
        for _ in range(ROUNDS):
            await watch.run_once()
        assert await watches.is_online("dev1")
        proxy.heal()

        async def is_back() -> bool:
            return system.reconnects > 0

        await eventually(is_back, "the connection")
        for _ in range(ROUNDS):
            await watch.run_once()
        assert await watches.is_online("dev1")


async def test_what_another_host_hears_is_there_although_this_one_is_cut_off_from_it(
    nats_server: NatsServer, tmp_path_factory: pytest.TempPathFactory, watches: Watches
) -> None:
    # Two servers without a route are what a broken network makes of a cluster.
    other_server = NatsServer(tmp_path_factory.mktemp("other") / "nats")
    try:
        near = await watches.system(nats_server.system_url)
        far = await watches.system(other_server.system_url)
        one, other = watches.watch(near), watches.watch(far)
        await watches.open_session(near, "dev1")
        far_id = await watches.open_session(far, "dev2")
        for _ in range(ROUNDS):
            await other.run_once()
            await one.run_once()
        assert await watches.is_online("dev1")
        assert await watches.is_online("dev2")
        assert (one.sees_all, other.sees_all) == (False, False)

        async def is_offline() -> bool:
            assert await one.run_once() is None
            return not await watches.is_online("dev2")

        await eventually(is_offline, "the end of the sessions of the server that nobody hears")
        assert one.sees_all
        assert await watches.is_online("dev1")

        # It answers again: its sessions are compared, and once.
        assert await other.run_once() is not None
        assert await other.run_once() is None
        lost = await watches.presence.pool.fetch("SELECT server_id FROM presence_servers")
        assert far_id in {row["server_id"] for row in lost}
    finally:
        other_server.stop()


async def test_servers_that_were_not_heard_for_a_day_are_forgotten(
    nats_server: NatsServer, watches: Watches
) -> None:
    pool: asyncpg.Pool[asyncpg.Record] = watches.presence.pool
    await pool.execute(
        "INSERT INTO presence_servers (server_id, heard_at)"
        " SELECT 'N' || n, now() - interval '2 days' FROM generate_series(1, 100) AS n"
    )
    system = await watches.system(nats_server.system_url)
    await watches.watch(system).run_once()
    assert await pool.fetchval("SELECT count(*) FROM presence_servers") == 1
