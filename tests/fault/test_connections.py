"""The connection between a host and a server breaks, or becomes silent, and recovers."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from runtime.broker.connection import Broker
from tests.fault.scene import Servers, flow, seeds
from tests.support.host import eventually
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer, PostgresServer, nats_url

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def nats_link(nats: NatsServer) -> AsyncIterator[Proxy]:
    """A proxy in front of NATS for the host; the publisher connects directly."""
    async with Proxy(nats.port) as proxy:
        yield proxy


@pytest.fixture
async def postgres_link(postgres: PostgresServer) -> AsyncIterator[Proxy]:
    """A proxy in front of PostgreSQL."""
    async with Proxy(postgres.socket) as proxy:
        yield proxy


@seeds
async def test_a_cut_connection_to_nats_loses_and_doubles_nothing(
    servers: Servers, nats_link: Proxy, seed: int
) -> None:
    async with flow(servers, seed, environment=by_nats(nats_link)) as scene:
        nats_link.cut()
        await scene.last(0, 6)
        nats_link.heal()
    assert nats_link.connections > 1


@seeds
async def test_a_silent_connection_to_nats_loses_and_doubles_nothing(
    servers: Servers, nats_link: Proxy, seed: int
) -> None:
    async with flow(servers, seed, environment=by_nats(nats_link)) as scene:
        nats_link.silence()
        # After 10 s the host closes the connection and opens another.
        await scene.last(4, 16)
        nats_link.heal()


@seeds
async def test_a_cut_connection_to_postgresql_loses_and_doubles_nothing(
    servers: Servers, postgres_link: Proxy, seed: int
) -> None:
    environment = by_postgres(postgres_link, servers)
    async with flow(servers, seed, environment=environment) as scene:
        connections = postgres_link.connections
        postgres_link.cut()
        await scene.last(0, 6)
        postgres_link.heal()
    assert postgres_link.connections > connections


@seeds
@pytest.mark.long
async def test_a_silent_connection_to_postgresql_loses_and_doubles_nothing(
    servers: Servers, postgres_link: Proxy, seed: int
) -> None:
    environment = by_postgres(postgres_link, servers)
    async with flow(servers, seed, environment=environment) as scene:
        postgres_link.silence()
        await scene.last(2, 10)
        if scene.chance.random() < 0.5:
            # As a router does that has dropped the state of the connections.
            postgres_link.cut()
        postgres_link.heal()


async def test_a_server_that_says_nothing_is_tried_with_one_connection_at_a_time(
    nats_link: Proxy,
) -> None:
    broker = await Broker.connect(nats_url(nats_link.port), name="test")
    tries = nats_link.connections + 3

    async def is_tried_again() -> bool:
        return nats_link.connections >= tries

    nats_link.silence()
    nats_link.reset()
    await eventually(is_tried_again, "another try", 30)
    opened = nats_link.open
    nats_link.heal()
    await broker.ping(timeout_s=10)
    await broker.close()

    assert opened <= 2  # The previous connection may still be closing.


def by_nats(link: Proxy) -> dict[str, str]:
    return {"NATS_URL": nats_url(link.port)}


def by_postgres(link: Proxy, servers: Servers) -> dict[str, str]:
    address = urlsplit(servers.dsn)
    user, _, _ = address.netloc.rpartition("@")
    return {"DATABASE_URL": f"postgresql://{user}@127.0.0.1:{link.port}{address.path}"}
