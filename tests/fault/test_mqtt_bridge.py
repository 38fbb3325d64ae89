"""Hosts of the MQTT bridge, and nats-server, are killed while devices publish at a Mosquitto."""

import asyncio
import os
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.broker.connection import Broker
from tests.fault.hosts import HostProcess
from tests.fault.scene import seeds
from tests.support.gateway import count_stored, read_stored
from tests.support.host import eventually
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import MqttSession
from tests.support.mqtt_bridge import publish
from tests.support.servers import NatsServer

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(300)]

MANIFEST = Path("deploy/mosquitto/bridge.yaml")
MESSAGES = int(os.environ.get("FAULT_READINGS", "2000"))
DEVICES = 4
TOPIC = "tenant/t1/device/d1/telemetry"
_ENDED_S = 120.0


@pytest.fixture
async def streams(nats: NatsServer) -> None:
    broker = await Broker.connect(nats.url, name="test")
    for name, subject in (("TELEMETRY", "telemetry.>"), ("UNMAPPED", "tenant.>")):
        config = {"name": name, "subjects": [subject], "storage": "file"}
        await broker.api(f"STREAM.CREATE.{name}", config)
    await broker.close()


class Devices:
    """Devices that publish numbered messages, each when the broker has confirmed the one before."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pool = ThreadPoolExecutor(DEVICES)
        self.published = threading.Semaphore(0)

    async def publish(self, numbers: range) -> None:
        loop = asyncio.get_running_loop()
        parts = [numbers[start::DEVICES] for start in range(DEVICES)]
        await asyncio.gather(
            *(
                loop.run_in_executor(self._pool, self._run, device, part)
                for device, part in enumerate(parts)
            )
        )

    def _run(self, device: int, numbers: range) -> None:
        with MqttSession(self._port) as session:
            for number in numbers:
                session.publish(f"tenant/t1/device/d{device}/telemetry", f'{{"n": {number}}}')


async def count_by_number(broker: Broker) -> Counter[str]:
    last = (await count_stored(broker, ("TELEMETRY",)))["TELEMETRY"]
    found = [await read_stored(broker, "TELEMETRY", n) for n in range(1, last + 1)]
    return Counter(message.document["payload"] for message in found)


async def everything(broker: Broker, count: int) -> Counter[str]:
    """The stored messages by their content, as soon as there are at least so many different."""
    seen = 0

    async def look() -> Counter[str] | None:
        nonlocal seen
        stored = (await count_stored(broker, ("TELEMETRY",))).get("TELEMETRY", 0)
        if stored < count or stored == seen:
            return None
        seen = stored
        found = await count_by_number(broker)
        return found if len(found) >= count else None

    return await eventually(look, f"{count} different messages", _ENDED_S)


def hosts_of(
    nats: NatsServer, mosquitto: Mosquitto, folder: Path, sessions: int = 2
) -> list[HostProcess]:
    environment = {
        "NATS_URL": nats.url,
        "MQTT_BRIDGE_URL": mosquitto.url,
        "MQTT_BRIDGE_SESSIONS": str(sessions),
    }
    return [HostProcess(name, [MANIFEST], environment, folder) for name in ("one", "two")]


def sessions_of(host: HostProcess) -> int:
    """How often the host has connected to the broker."""
    return host.log.count("The MQTT bridge is connected.")


async def have_sessions(hosts: list[HostProcess], count: int) -> None:
    """Return when the hosts have the sessions, each at most its share."""
    for host in hosts:
        await host.wait_until_ready()

    async def look() -> bool:
        return [min(1, sessions_of(host)) for host in hosts].count(1) >= min(count, len(hosts))

    await eventually(look, f"{count} sessions")


@seeds
@pytest.mark.parametrize("sessions", [1, 2])
async def test_of_a_killed_bridge_another_host_takes_over_and_every_message_is_stored_once(  # noqa: PLR0917
    nats: NatsServer,
    streams: None,
    mosquitto: Mosquitto,
    tmp_path: Path,
    seed: int,
    sessions: int,
) -> None:
    hosts = hosts_of(nats, mosquitto, tmp_path, sessions)
    broker = await Broker.connect(nats.url, name="test")
    devices = Devices(mosquitto.port)
    try:
        for host in hosts:
            await host.start()
        await have_sessions(hosts, sessions)
        victim, heir = sorted(hosts, key=sessions_of, reverse=True)
        before = sessions_of(heir)
        publishing = asyncio.create_task(devices.publish(range(MESSAGES)))
        chance = random.Random(seed)  # noqa: S311
        killed_at = chance.randrange(MESSAGES // 10, MESSAGES // 2)

        async def has_come() -> bool:
            return (await count_stored(broker, ("TELEMETRY",))).get("TELEMETRY", 0) >= killed_at

        await eventually(has_come, f"{killed_at} messages")
        await victim.kill()
        await publishing
        found = await everything(broker, MESSAGES)
        assert len(found) == MESSAGES
        assert set(found.values()) == {1}
        assert sessions_of(heir) > before
    finally:
        await broker.close()
        for host in hosts:
            await host.stop()


@seeds
async def test_however_often_bridges_and_nats_are_killed_no_message_is_lost(
    nats: NatsServer, streams: None, mosquitto: Mosquitto, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    hosts = hosts_of(nats, mosquitto, tmp_path)
    devices = Devices(mosquitto.port)
    try:
        for host in hosts:
            await host.start()
        await have_sessions(hosts, 2)
        part = MESSAGES // 4
        for start in range(0, MESSAGES, part):
            publishing = asyncio.create_task(devices.publish(range(start, start + part)))
            victim = chance.choice(hosts)
            await asyncio.sleep(chance.uniform(0, 0.5))
            await victim.kill()
            if chance.random() < 0.5:
                nats.kill()
                nats.start()
            await victim.start()
            await publishing
        broker = await Broker.connect(nats.url, name="test")
        assert len(await everything(broker, MESSAGES)) == MESSAGES
        await broker.close()
    finally:
        for host in hosts:
            await host.stop()


@seeds
async def test_large_messages_survive_kills_of_bridges_and_restarts_of_the_broker(
    nats: NatsServer, streams: None, mosquitto: Mosquitto, tmp_path: Path, seed: int
) -> None:
    count = MESSAGES // 80
    chance = random.Random(seed)  # noqa: S311
    hosts = hosts_of(nats, mosquitto, tmp_path, 1)
    broker = await Broker.connect(nats.url, name="test")
    try:
        for host in hosts:
            await host.start()
        await have_sessions(hosts, 1)
        # The smaller ones a session may hold; the larger ones fill it again and again.
        for part, size in enumerate((60_000, 800_000) * 4):
            numbers = range(part * count, (part + 1) * count)
            padding = "x" * size
            await publish(mosquitto, TOPIC, *(f'{{"n": {n}, "x": "{padding}"}}' for n in numbers))
            victim = max(hosts, key=sessions_of)
            await victim.kill()
            if chance.random() < 0.5:
                # No bridge may be there when it comes back.
                mosquitto.stop()
                mosquitto.start()
            await victim.start()
        assert len(await everything(broker, 8 * count)) == 8 * count
    finally:
        await broker.close()
        for host in hosts:
            await host.stop()


def flood(port: int) -> None:
    """Publish large messages; the broker may be killed meanwhile."""
    with suppress(OSError, RuntimeError), MqttSession(port) as session:
        for _ in range(40):
            session.publish(TOPIC, "x" * 500_000, 0)


@seeds
async def test_a_broker_that_is_killed_again_and_again_gets_its_bridge_back(
    nats: NatsServer, streams: None, mosquitto: Mosquitto, tmp_path: Path, seed: int
) -> None:
    """What the broker itself loses nobody has; what comes after it is stored."""
    chance = random.Random(seed)  # noqa: S311
    [host, _] = hosts_of(nats, mosquitto, tmp_path, 1)
    broker = await Broker.connect(nats.url, name="test")
    try:
        await host.start()
        await have_sessions([host], 1)
        for life in range(1, 5):
            flooding = asyncio.create_task(asyncio.to_thread(flood, mosquitto.port))
            await asyncio.sleep(chance.uniform(0, 0.3))
            mosquitto.kill()
            mosquitto.start()
            await flooding

            async def is_back(life: int = life) -> bool:
                return sessions_of(host) > life

            await eventually(is_back, "the bridge connected again", 60)
            await publish(mosquitto, TOPIC, f'{{"life": {life}}}')

            async def has_come(life: int = life) -> bool:
                return f'{{"life": {life}}}' in await count_by_number(broker)

            await eventually(has_come, "the message after the kill", 60)
    finally:
        await broker.close()
        await host.stop()


@seeds
async def test_a_paused_host_and_its_heir_store_every_message_once(
    nats: NatsServer, streams: None, mosquitto: Mosquitto, tmp_path: Path, seed: int
) -> None:
    hosts = hosts_of(nats, mosquitto, tmp_path, 1)
    broker = await Broker.connect(nats.url, name="test")
    devices = Devices(mosquitto.port)
    try:
        for host in hosts:
            await host.start()
        await have_sessions(hosts, 1)
        paused, heir = sorted(hosts, key=sessions_of, reverse=True)
        publishing = asyncio.create_task(devices.publish(range(MESSAGES)))
        paused.pause()

        async def has_taken_over() -> bool:
            return sessions_of(heir) > 0

        try:
            await eventually(has_taken_over, "the heir's session", 60)
        finally:
            paused.resume()
        await publishing
        found = await everything(broker, MESSAGES)
        assert len(found) == MESSAGES
        assert set(found.values()) == {1}
    finally:
        await broker.close()
        for host in hosts:
            await host.stop()
