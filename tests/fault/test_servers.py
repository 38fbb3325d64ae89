"""nats-server and PostgreSQL are killed or stopped (SIGSTOP) while messages flow."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from tests.fault.scene import Scene, Servers, apart, flow, seeds
from tests.support.servers import NatsServer, PostgresServer

Act = Callable[[], Awaitable[None]]

pytestmark = pytest.mark.timeout(300)


@seeds
async def test_a_killed_nats_server_loses_and_doubles_nothing(
    servers: Servers, nats: NatsServer, seed: int
) -> None:
    async with flow(servers, seed) as scene:
        await _kill(scene, nats)


@seeds
async def test_a_nats_server_that_stands_still_loses_and_doubles_nothing(
    servers: Servers, nats: NatsServer, seed: int
) -> None:
    async with flow(servers, seed) as scene:
        nats.pause()
        # After 10 s clients close the connection and open another.
        await scene.last(1, 16)
        nats.resume()


@seeds
async def test_a_killed_postgresql_loses_and_doubles_nothing(
    servers: Servers, postgres: PostgresServer, seed: int
) -> None:
    async with flow(servers, seed) as scene:
        await _kill(scene, postgres)


@seeds
async def test_a_postgresql_that_stands_still_loses_and_doubles_nothing(
    servers: Servers, postgres: PostgresServer, seed: int
) -> None:
    async with flow(servers, seed) as scene:
        postgres.pause()
        await scene.last(1, 10)
        postgres.resume()


@seeds
async def test_host_nats_and_postgresql_that_die_in_any_order_lose_and_double_nothing(
    servers: Servers, nats: NatsServer, postgres: PostgresServer, seed: int
) -> None:
    async with flow(servers, seed) as scene:
        kills: list[Act] = [scene.hosts[0].kill, partial(apart, nats.kill)]
        kills.append(partial(apart, postgres.kill))
        starts: list[Act] = [partial(apart, nats.start), partial(apart, postgres.start)]
        for acts in (kills, starts):
            scene.chance.shuffle(acts)
            for act in acts:
                await act()
                await scene.last(0, 1)
        # The host is last: without a server it would end, and nothing starts it again.
        await scene.hosts[0].start()


async def _kill(scene: Scene, server: NatsServer | PostgresServer) -> None:
    await apart(server.kill)
    await scene.last(0, 3)
    await apart(server.start)
