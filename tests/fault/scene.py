"""One case of the fault suite: hosts, servers and traffic, and what must be true in the end.

A test opens `flow`, does its harm in the body, mends it there, and is done: leaving the body waits
until nothing is under way any more, and reckons.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from runtime.broker.connection import Broker
from tests.fault.endpoint import SECRET, Endpoint
from tests.fault.hosts import HostProcess
from tests.fault.reckoning import assert_nothing_lost_nothing_doubled, is_settled
from tests.fault.traffic import Traffic, register_devices
from tests.support.host import eventually

READINGS = int(os.environ.get("FAULT_READINGS", "3000"))
seeds = pytest.mark.parametrize("seed", range(int(os.environ.get("FAULT_ROUNDS", "1"))))

MANIFESTS = [Path("manifests/telemetry.yaml"), Path("manifests/routes.yaml")]
ACK_WAIT_S = 3.0
_SETTLED_S = 150.0
_RELUCTANT_EVERY = 500
# The system ends a server together with the thread that has started it: this one outlives the test.
_starter = ThreadPoolExecutor(1)


@dataclass(frozen=True)
class Servers:
    """Where they are, and a folder for what belongs to a case."""

    nats_url: str
    dsn: str
    directory: Path
    replicas: int = 1


@dataclass
class Scene:
    """What a test may look at and lay hands on while messages flow.

    Attributes:
        broker: the publisher's connection.
        chance: decides what a test leaves open; the same in every run with this seed.
    """

    hosts: list[HostProcess]
    traffic: Traffic
    endpoint: Endpoint
    broker: Broker
    chance: random.Random

    async def last(self, shortest_s: float, longest_s: float) -> None:
        """Let the fault last: its length is chosen, and nothing is waited for."""
        await asyncio.sleep(self.chance.uniform(shortest_s, longest_s))


@asynccontextmanager
async def flow(
    servers: Servers,
    seed: int,
    *,
    hosts: int = 1,
    arguments: tuple[str, ...] = (),
    module: str = "runtime",
    environment: Mapping[str, str] | None = None,
    endpoint: Endpoint | None = None,
) -> AsyncIterator[Scene]:
    """Have messages flow, and be in the middle of a burst when the body begins.

    Args:
        servers: of this case alone; the manifests are applied to them.
        seed: of the moment, and of what the body leaves to chance.
        hosts: how many share the work.
        arguments: of `runtime serve`, beside the manifests.
        module: see `HostProcess`.
        environment: of the hosts, in place of where the servers are.
        endpoint: receives the webhooks.

    Raises:
        AssertionError: something is lost, doubled or where it does not belong.
    """
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    traffic = Traffic.mixed(READINGS)
    manifests = write_manifests(servers)
    broker = await Broker.connect(servers.nats_url, name="publisher")
    async with endpoint or Endpoint(reluctant_every=_RELUCTANT_EVERY) as receiver:
        await register_devices(servers.dsn, receiver.url, SECRET)
        addresses = {
            "NATS_URL": servers.nats_url,
            "DATABASE_URL": servers.dsn,
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
            **(environment or {}),
        }
        cast = [
            HostProcess(
                f"host{n}", [*manifests, *arguments], addresses, servers.directory, module=module
            )
            for n in range(hosts)
        ]
        scene = Scene(cast, traffic, receiver, broker, chance)
        try:
            await asyncio.gather(*(host.start() for host in cast))
            await asyncio.gather(*(host.wait_until_ready() for host in cast))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(traffic.publish(broker))
                await traffic.reach(chance.randint(traffic.burst.start + 1, traffic.burst.stop))
                yield scene
            await eventually(lambda: is_settled(broker), "the end of everything", _SETTLED_S)
            await assert_nothing_lost_nothing_doubled(traffic, receiver, broker, servers.dsn)
        finally:
            await asyncio.gather(*(host.stop() for host in cast))
            await broker.close()


async def apart(work: Callable[[], None]) -> None:
    """Run what starts or ends a server while everything else goes on."""
    await asyncio.get_running_loop().run_in_executor(_starter, work)


def write_manifests(servers: Servers) -> list[Path]:
    """The shipped ones, made so that a case takes seconds, and full streams refuse what comes."""
    written = []
    for path in MANIFESTS:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for stream in document["streams"].values():
            stream |= {"replicas": servers.replicas, "discard": "new"}
        for function in document["functions"].values():
            if "consumer" in function:
                function["consumer"]["ack_wait"] = f"{ACK_WAIT_S:g}s"
        if "deliver_webhook" in document["functions"]:
            document["functions"]["deliver_webhook"]["retry"] = {"delay": "1s", "attempts": 20}
        copy = servers.directory / path.name
        copy.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML.
        written.append(copy)
    return written
