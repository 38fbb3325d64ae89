"""Host, nats-server and PostgreSQL die in any order while messages flow, and nothing is lost."""

import asyncio
import os
import random
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from runtime.broker.connection import Broker
from runtime.resource.postgres import migrate
from tests.fault.backbone import (
    MANIFESTS,
    ROUTED_EVERY,
    Telemetry,
    assert_nothing_lost_nothing_doubled,
    count_rows,
    delivered_ids,
    is_all_acknowledged,
    register_devices,
    stream_exists,
)
from tests.fault.hosts import HostProcess, until
from tests.receiver import Receiver
from tests.servers import NatsServer, PostgresServer, remove

pytestmark = pytest.mark.timeout(300)

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "1"))
MESSAGES = 20_000
PAUSE_S = 3.0


@dataclass
class Cast:
    """All that can die, each with servers of its own so that nobody else's test dies with it."""

    nats: NatsServer
    postgres: PostgresServer
    host: HostProcess

    async def kill_host(self) -> None:
        await self.host.kill()
        await self.host.start()

    async def kill_nats(self) -> None:
        await asyncio.to_thread(self.nats.kill)
        await asyncio.to_thread(self.nats.start)

    async def kill_postgres(self) -> None:
        await asyncio.to_thread(self.postgres.kill)
        await asyncio.to_thread(self.postgres.start)

    async def pause_nats(self) -> None:
        self.nats.pause()
        await asyncio.to_thread(_pass, PAUSE_S)
        self.nats.resume()

    async def kill_both_servers(self) -> None:
        await asyncio.to_thread(self.postgres.kill)
        await asyncio.to_thread(self.nats.kill)
        await asyncio.to_thread(self.nats.start)
        await asyncio.to_thread(self.postgres.start)

    def faults(self) -> list[Callable[[], Awaitable[None]]]:
        return [
            self.kill_host,
            self.kill_nats,
            self.kill_postgres,
            self.pause_nats,
            self.kill_both_servers,
        ]


def _pass(seconds: float) -> None:
    """Let time pass while a server stands still: the fault itself, nothing is waited for."""
    threading.Event().wait(seconds)


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="runtime-fault-"))
    path.chmod(0o711)
    yield path
    remove(path)


@pytest.fixture
async def cast(directory: Path) -> AsyncIterator[Cast]:
    nats = NatsServer(directory / "nats")
    postgres = PostgresServer(directory / "postgres")
    await migrate(postgres.dsn(), ["functions.domain.migrations"])
    environment = {
        "NATS_URL": nats.url,
        "DATABASE_URL": postgres.dsn(),
        "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    host = HostProcess("host", MANIFESTS, environment, directory)
    yield Cast(nats, postgres, host)
    await host.stop()
    nats.stop()
    postgres.stop()


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_nothing_is_lost_or_doubled_though_host_nats_and_postgres_die(
    cast: Cast, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same faults in every run
    dsn = cast.postgres.dsn()
    telemetry = Telemetry(MESSAGES)
    broker = await Broker.connect(cast.nats.url, name="publisher")
    async with Receiver() as receiver:
        database = await asyncpg.connect(dsn)
        await register_devices(database, receiver.url)
        await database.close()
        await cast.host.start()
        await until(lambda: stream_exists(broker, "TELEMETRY"), "the stream TELEMETRY", 60)
        publishing = asyncio.create_task(telemetry.publish(broker))
        faults = cast.faults()
        chance.shuffle(faults)
        for number, fault in enumerate(faults, start=1):
            wanted = MESSAGES * number // (len(faults) + 2)

            async def enough(wanted: int = wanted) -> bool:
                return await count_rows(dsn) >= wanted

            await until(enough, f"{wanted} rows", 90)
            await fault()
        await publishing

        async def are_all_rows_there() -> bool:
            return await count_rows(dsn) >= MESSAGES

        await until(are_all_rows_there, "the last row", 120)
        await until(lambda: is_all_acknowledged(broker), "the last acknowledgement", 120)

        async def have_arrived() -> bool:
            return len(delivered_ids(receiver)) >= MESSAGES // ROUTED_EVERY

        await until(have_arrived, "the last delivery", 120)
        await assert_nothing_lost_nothing_doubled(telemetry, receiver, broker, dsn)
    await broker.close()
