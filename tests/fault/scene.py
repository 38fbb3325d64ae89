"""One case of the fault suite: hosts, servers and traffic, and the check at the end.

A test enters `flow`, and causes and repairs a fault in the body. The exit waits until every message
is settled, and compares the results with the traffic.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
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

READINGS = int(os.environ.get("FAULT_READINGS", "2000"))
seeds = pytest.mark.parametrize("seed", range(int(os.environ.get("FAULT_ROUNDS", "1"))))

MANIFESTS = [Path("manifests/telemetry.yaml"), Path("manifests/routes.yaml")]
ACK_WAIT_S = 3.0
_SETTLED_S = 150.0
_RELUCTANT_EVERY = 500
# The kernel ends a server together with the thread that started it. This thread outlives the test.
_starter = ThreadPoolExecutor(1)


@dataclass(frozen=True)
class Servers:
    """The servers of a case, and a folder for its files."""

    nats_url: str
    dsn: str
    directory: Path
    replicas: int = 1


@dataclass
class Scene:
    """What a test may inspect and break while messages flow.

    Attributes:
        broker: the publisher's connection.
        chance: random choices of the test; the same in every run with the same seed.
    """

    hosts: list[HostProcess]
    traffic: Traffic
    endpoint: Endpoint
    broker: Broker
    chance: random.Random

    async def last(self, shortest_s: float, longest_s: float) -> None:
        """Sleep for the chosen length of the fault; there is no event to wait for."""
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
    prepare: Callable[[Broker], Awaitable[None]] | None = None,
) -> AsyncIterator[Scene]:
    """Start the flow of messages; the body begins in the middle of a burst.

    Args:
        servers: servers of this case alone; the manifests are applied to them.
        seed: seed of the moment at which the body begins, and of the body's random choices.
        hosts: number of hosts that share the work.
        arguments: arguments of `runtime serve`, beside the manifests.
        module: see `HostProcess`.
        environment: environment of the hosts, in place of the servers' addresses.
        endpoint: receives the webhooks.
        prepare: is run when the hosts are ready, before the first message.

    Raises:
        AssertionError: a message is lost, doubled or in a wrong place.
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
            "JOB_REPEAT_WAIT_S": "1",
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
            if prepare is not None:
                await prepare(broker)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(traffic.publish(broker))
                await traffic.reach(chance.randint(traffic.burst.start + 1, traffic.burst.stop))
                yield scene
            await eventually(
                lambda: is_settled(broker, servers.dsn), "the end of everything", _SETTLED_S
            )
            await assert_nothing_lost_nothing_doubled(traffic, receiver, broker, servers.dsn)
        finally:
            await asyncio.gather(*(host.stop() for host in cast))
            await broker.close()


async def apart(work: Callable[[], None]) -> None:
    """Run a blocking call that starts or ends a server, in a thread."""
    await asyncio.get_running_loop().run_in_executor(_starter, work)


def write_manifests(servers: Servers) -> list[Path]:
    """Write the shipped manifests with shorter times, and with streams that refuse when full."""
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
