"""Hosts and workers are killed or stopped (SIGSTOP) while messages flow."""

import pytest

from tests.fault.scene import ACK_WAIT_S, Servers, flow, seeds

pytestmark = pytest.mark.timeout(300)


@seeds
async def test_a_killed_host_loses_and_doubles_nothing(servers: Servers, seed: int) -> None:
    async with flow(servers, seed, hosts=2) as scene:
        host = scene.chance.choice(scene.hosts)
        await host.kill()
        await scene.last(0, 1)
        await host.start()


@seeds
async def test_a_host_that_stands_still_and_goes_on_loses_and_doubles_nothing(
    servers: Servers, seed: int
) -> None:
    async with flow(servers, seed, hosts=2) as scene:
        host = scene.chance.choice(scene.hosts)
        host.pause()
        # By then the other host has received the messages that this host still holds.
        await scene.last(ACK_WAIT_S + 0.5, 2 * ACK_WAIT_S)
        host.resume()


@seeds
async def test_a_killed_worker_loses_and_doubles_nothing(servers: Servers, seed: int) -> None:
    async with flow(servers, seed, arguments=("--workers", "2")) as scene:
        scene.chance.choice(scene.hosts[0].workers).kill()


@seeds
@pytest.mark.long
async def test_a_worker_that_stands_still_and_goes_on_loses_and_doubles_nothing(
    servers: Servers, seed: int
) -> None:
    async with flow(servers, seed, arguments=("--workers", "2")) as scene:
        worker = scene.chance.choice(scene.hosts[0].workers)
        worker.suspend()
        await scene.last(ACK_WAIT_S + 0.5, 2 * ACK_WAIT_S)
        worker.resume()
