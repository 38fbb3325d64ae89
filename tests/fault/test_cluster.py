"""A JetStream cluster of three loses leaders while messages flow through two hosts."""

import asyncio
from pathlib import Path

import pytest

from runtime.broker.connection import ApiError, Broker
from runtime.broker.streams import ensure, plan
from runtime.errors import PublishFailed, Unavailable
from runtime.manifest.model import Manifest
from tests.fault.reckoning import settled_telemetry
from tests.fault.scene import Scene, Servers, flow, seeds
from tests.support.cluster import NODES, NatsCluster, NatsNode
from tests.support.host import eventually

pytestmark = pytest.mark.timeout(300)

LED = ("STREAM.INFO.TELEMETRY", "CONSUMER.INFO.TELEMETRY.ingest-workers", "STREAM.INFO.ROUTES")


@pytest.fixture
def clustered(nats_cluster: NatsCluster, postgres_dsn: str, tmp_path: Path) -> Servers:
    return Servers(nats_cluster.url, postgres_dsn, tmp_path, replicas=NODES)


@seeds
async def test_a_killed_leader_loses_and_doubles_nothing_and_the_flow_resumes_without_it(
    clustered: Servers, nats_cluster: NatsCluster, seed: int
) -> None:
    async with flow(clustered, seed, hosts=2) as scene:
        leader = await _leader(scene, nats_cluster)
        leader.kill()
        await _flow_goes_on(scene)
        leader.start()

        async def replicas() -> int | None:
            try:
                own = await scene.broker.api("STREAM.INFO.MAILBOX")
            except (ApiError, Unavailable):
                return None  # The election may be in progress.
            return int(own["config"]["num_replicas"])

        assert await eventually(replicas, "what MAILBOX is like", 60) == NODES


@seeds
@pytest.mark.long
async def test_a_leader_that_stands_still_loses_and_doubles_nothing(
    clustered: Servers, nats_cluster: NatsCluster, seed: int
) -> None:
    async with flow(clustered, seed, hosts=2) as scene:
        leader = await _leader(scene, nats_cluster)
        leader.pause()
        await _flow_goes_on(scene)
        leader.resume()


async def _leader(scene: Scene, cluster: NatsCluster) -> NatsNode:
    subject = scene.chance.choice(LED)

    async def look() -> str:
        try:
            found = await scene.broker.api(subject, timeout_s=1)
        except (ApiError, Unavailable):
            return ""
        return str(found["cluster"].get("leader", ""))

    return cluster.node(await eventually(look, f"a leader of {subject}", 60))


async def _flow_goes_on(scene: Scene) -> None:
    """Return when half of the missing rows are written, so that the rest meets the old leader."""
    confirmed = scene.traffic.confirmed
    wanted = (confirmed + scene.traffic.count) // 2

    async def is_written() -> bool:
        return await settled_telemetry(scene.broker) >= wanted

    await eventually(is_written, f"{wanted} readings", 90)


async def test_a_leader_that_hands_over_costs_the_publish_at_most_that_it_was_at(
    nats_cluster: NatsCluster,
) -> None:
    broker = await Broker.connect(nats_cluster.url, name="test")
    config = {"name": "FLOW", "subjects": ["flow.>"], "storage": "file", "retention": "limits"}
    await broker.api("STREAM.CREATE.FLOW", {**config, "num_replicas": NODES})
    refusals = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(300):
            if number in (100, 200):
                tasks.create_task(broker.api("STREAM.LEADER.STEPDOWN.FLOW"))
            try:
                await broker.publish("flow.a", b"%d" % number)
            except PublishFailed as failure:
                refusals.append(failure.reason)
    await broker.close()

    # No publish was refused for lack of a leader.
    assert set(refusals) <= {"no confirmation within 5 s"}
    assert len(refusals) <= 2


async def test_many_hosts_that_start_at_once_on_a_cluster_agree(nats_cluster: NatsCluster) -> None:
    brokers = [await Broker.connect(nats_cluster.url, name=f"host {n}") for n in range(5)]
    left = []
    for attempt in range(4):  # In about half of the rounds a host asks a stream without a leader.
        manifest = _manifest(f"FIRST{attempt}", f"SECOND{attempt}")
        await asyncio.gather(*(ensure(broker, manifest) for broker in brokers))
        left += await plan(brokers[0], manifest)
    for broker in brokers:
        await broker.close()

    assert left == []


def _manifest(*streams: str) -> Manifest:
    consumers = {name.lower(): {"stream": name} for name in streams}
    return Manifest.model_validate(
        {
            "streams": {name: {"subjects": [name], "replicas": NODES} for name in streams},
            "functions": {
                name: {"handler": "a.module:a_function", "consumer": consumer}
                for name, consumer in consumers.items()
            },
        }
    )
