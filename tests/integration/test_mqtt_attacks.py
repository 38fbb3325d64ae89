"""What a device with credentials, or a client without, can do to nats-server's MQTT listener."""

import asyncio
from collections import Counter
from typing import Any, NamedTuple

import pytest

from functions.domain.mqtt_session_records import record_subject
from runtime.broker.connection import Broker
from runtime.message import Message
from runtime.resource.postgres import open_pool
from tests.support.device_auth import serving
from tests.support.host import eventually, fresh
from tests.support.ingest import TOKEN, register
from tests.support.raw_mqtt import ACCEPTED, CLEAN, NOT_AUTHORIZED, RawMqtt, log_in, text
from tests.support.servers import NatsServer

KEEPING = 0
"""Flags of a CONNECT that keeps its session."""
WILL_QOS_1, WILL_RETAINED = 0x0C, 0x20


class Devices(NamedTuple):
    """Two devices of one tenant, and their topics."""

    hostile: str
    healthy: str

    @property
    def own(self) -> str:
        return f"tenant/test/device/{self.hostile}"

    @property
    def others(self) -> str:
        return f"tenant/test/device/{self.healthy}"


@pytest.fixture
async def devices(postgres_dsn: str) -> Devices:
    """Devices that no other test has: the server remembers what they left."""
    pool = await open_pool(postgres_dsn, max_size=1)
    names = Devices(fresh("hostile"), fresh("healthy"))
    for device in names:
        await register(pool, device=device)
    await pool.close()
    return names


@pytest.fixture
async def heard(broker: Broker) -> "asyncio.Queue[Message]":
    """All messages of devices and to them."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    for family in ("tenant", "telemetry", "shadow", "commands"):
        await broker.subscribe(f"{family}.>", messages.put_nowait)
    return messages


async def entered(server: NatsServer, device: str, session: str = "", *, flags: int = CLEAN) -> Any:
    """A connection of the device, which has logged in."""
    client = await RawMqtt.open(server.mqtt_port)
    user = f"test/{device}"
    assert await client.connect(user + session, user, TOKEN, flags=flags) == ACCEPTED
    return client


async def leave_session(server: NatsServer, device: str) -> None:
    """A session that waits for its client, with a subscription to everything of the device."""
    async with await entered(server, device, flags=KEEPING) as client:
        assert await client.subscribe(f"tenant/test/device/{device}/#") == 1


async def counts(broker: Broker, stream: str, devices: Devices) -> Counter[str]:
    """The messages of a stream, by device."""
    info = await broker.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">"})
    found: Counter[str] = Counter(dict.fromkeys(devices, 0))
    for subject, count in (info["state"].get("subjects") or {}).items():
        for device in devices:
            found[device] += count if device in subject else 0
    return found


async def spray(port: int) -> Counter[int | None]:
    """One password for many devices."""
    return Counter([await log_in(port, f"test/x{number}", "password") for number in range(70)])


async def test_who_guesses_for_many_devices_is_limited_by_address(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices
) -> None:
    port = nats_server.mqtt_port
    async with serving(nats_server, postgres_dsn, shared_networks=""):
        assert await log_in(port, f"test/{devices.hostile}", TOKEN) == ACCEPTED
        assert await spray(port) == {NOT_AUTHORIZED: 70}

        assert await log_in(port, f"test/{devices.hostile}", TOKEN) == ACCEPTED
        assert await log_in(port, f"test/{devices.healthy}", TOKEN, source="127.0.0.2") == ACCEPTED


async def test_who_guesses_behind_a_proxy_locks_nobody_out(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices
) -> None:
    port = nats_server.mqtt_port
    async with serving(nats_server, postgres_dsn):
        assert await spray(port) == {NOT_AUTHORIZED: 70}

        assert await log_in(port, f"test/{devices.hostile}", TOKEN) == ACCEPTED


async def test_a_device_that_fills_its_queue_pushes_out_no_other_s(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices, broker: Broker
) -> None:
    async with serving(nats_server, postgres_dsn, sweep_s=1, max_queued_messages=50):
        for device, messages in ((devices.healthy, 3), (devices.hostile, 300)):
            await leave_session(nats_server, device)
            async with await entered(nats_server, device, "/1") as client:
                for number in range(messages):
                    topic = f"tenant/test/device/{device}/n{number % 7}"
                    await client.deliver(topic, b"x" * 900)

        async def is_within() -> bool:
            return (await counts(broker, "$MQTT_msgs", devices))[devices.hostile] <= 50

        await eventually(is_within, "the share of the device")
        assert await counts(broker, "$MQTT_msgs", devices) == {
            devices.hostile: 50,
            devices.healthy: 3,
        }
        config = (await broker.api("STREAM.INFO.$MQTT_msgs"))["config"]
        assert config["max_bytes"] == 64_000_000


async def test_a_device_that_releases_no_message_pushes_out_no_other_s(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices, broker: Broker
) -> None:
    async with serving(nats_server, postgres_dsn, sweep_s=1):
        for device, messages in ((devices.healthy, 20), (devices.hostile, 200)):
            async with await entered(nats_server, device, flags=KEEPING) as client:
                for number in range(1, messages + 1):
                    topic = f"tenant/test/device/{device}/telemetry"
                    await client.publish(topic, b"{}", qos=2, packet_id=number)
                await client.ping()

        async def is_within() -> bool:
            return (await counts(broker, "$MQTT_qos2in", devices))[devices.hostile] <= 100

        await eventually(is_within, "the share of the device")
        assert await counts(broker, "$MQTT_qos2in", devices) == {
            devices.hostile: 100,
            devices.healthy: 20,
        }


async def test_a_device_that_retains_on_many_topics_pushes_out_no_other_s_and_is_shut_out(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices, broker: Broker
) -> None:
    async with serving(nats_server, postgres_dsn, sweep_s=1):
        for device, topics in ((devices.healthy, 20), (devices.hostile, 200)):
            async with await entered(nats_server, device) as client:
                for number in range(topics):
                    topic = f"tenant/test/device/{device}/n{number}"
                    await client.publish(topic, b"{}", retain=True)
                await client.ping()

        async def is_within() -> bool:
            return (await counts(broker, "$MQTT_rmsgs", devices))[devices.hostile] <= 100

        await eventually(is_within, "the share of the device")

        async def is_shut_out() -> bool:
            user = f"test/{devices.hostile}"
            return await log_in(nats_server.mqtt_port, user, TOKEN) == NOT_AUTHORIZED

        await eventually(is_shut_out, "the end of its sessions")
        assert await log_in(nats_server.mqtt_port, f"test/{devices.healthy}", TOKEN) == ACCEPTED
        assert await counts(broker, "$MQTT_rmsgs", devices) == {
            devices.hostile: 100,
            devices.healthy: 20,
        }


async def test_a_session_without_its_client_expires_with_its_consumers_and_begins_anew(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices, broker: Broker
) -> None:
    async with serving(nats_server, postgres_dsn, sweep_s=1, session_expiry_s=2):
        connected = await entered(nats_server, devices.healthy, flags=KEEPING)
        assert await connected.subscribe(f"{devices.others}/#", qos=2) == 2
        async with await entered(nats_server, devices.hostile, flags=KEEPING) as client:
            assert await client.subscribe(f"{devices.own}/#", qos=2) == 2

        async def sessions() -> tuple[int, ...]:
            found = [
                (await broker.api(f"STREAM.INFO.{stream}"))["state"]
                for stream in ("$MQTT_sess", "$MQTT_msgs", "$MQTT_out")
            ]
            return (found[0]["messages"], *(each["consumer_count"] for each in found[1:]))

        async def has_expired() -> bool:
            # A subscription to # has a consumer for the level above it, too.
            return await sessions() == (1, 2, 1)

        await eventually(has_expired, "the end of the session")
        async with await entered(nats_server, devices.healthy, "/1") as sender:
            await sender.deliver(f"{devices.others}/metrics", b"heard")
        assert (await connected.read())[1].endswith(b"heard")
        await connected.close()

        async def comes_back() -> Any:
            # nats-server remembers the session, notices that it is gone, and ends the connection.
            name = f"test/{devices.hostile}"
            client = await RawMqtt.open(nats_server.mqtt_port)
            if await client.connect(name, name, TOKEN, flags=KEEPING) == ACCEPTED:
                return client
            await client.close()
            return None

        device = await eventually(comes_back, "the device")
        assert await device.subscribe(f"{devices.own}/#") == 1
        async with await entered(nats_server, devices.hostile, "/1") as sender:
            await sender.deliver(f"{devices.own}/metrics", b"heard")
        assert (await device.read())[1].endswith(b"heard")
        await device.close()


async def test_a_session_with_too_many_subscriptions_ends_and_is_forgotten(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices, broker: Broker
) -> None:
    async with (
        serving(nats_server, postgres_dsn, sweep_s=1, max_subscriptions=50),
        await entered(nats_server, devices.healthy) as other,
        await entered(nats_server, devices.hostile, flags=KEEPING) as client,
    ):
        assert await other.subscribe(f"{devices.others}/#") == 1
        for number in range(60):
            await client.subscribe_unchecked(f"{devices.own}/n{number}")
        await client.wait_for_end()

        async def is_forgotten() -> bool:
            asked = {"subjects_filter": record_subject(f"test/{devices.hostile}")}
            info = await broker.api("STREAM.INFO.$MQTT_sess", asked)
            return not info["state"].get("subjects")

        await eventually(is_forgotten, "the end of the record")
        await other.publish(f"{devices.others}/metrics", b"heard")
        while not (await other.read())[1].endswith(b"heard"):
            pass


async def test_a_device_that_floods_is_disconnected_and_stays_outside_for_a_while(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices
) -> None:
    async with (
        # Of two hosts, one looks.
        serving(nats_server, postgres_dsn, sweep_s=3600, block_s=600),
        serving(nats_server, postgres_dsn, sweep_s=1, max_messages_per_s=50, block_s=600),
        await entered(nats_server, devices.healthy) as other,
        await entered(nats_server, devices.hostile) as client,
    ):
        for number in range(2000):
            await client.publish(f"{devices.own}/telemetry", b"{}")
            if number % 100 == 0:
                await other.deliver(f"{devices.others}/telemetry", b"{}")
        await client.wait_for_end()

        async def is_outside() -> bool:
            # Each host answers some of the questions.
            user = f"test/{devices.hostile}"
            answers = {await log_in(nats_server.mqtt_port, user, TOKEN) for _ in range(20)}
            return answers == {NOT_AUTHORIZED}

        await eventually(is_outside, "the answers of both hosts")
        await other.deliver(f"{devices.others}/telemetry", b"{}")


async def test_a_device_that_connects_too_often_has_to_wait(
    nats_server: NatsServer, postgres_dsn: str, devices: Devices
) -> None:
    port, user = nats_server.mqtt_port, f"test/{devices.hostile}"
    async with serving(nats_server, postgres_dsn):
        assert await log_in(port, user, TOKEN) == ACCEPTED
        # Who does not prove to be the device uses up nothing of it.
        await asyncio.gather(*(log_in(port, user, "guessed") for _ in range(70)))
        session = [f"{user}/{number}" for number in range(10)]
        answers: Counter[int | None] = Counter()
        while not answers[NOT_AUTHORIZED]:
            logins = (log_in(port, user, TOKEN, client_id=each) for each in session)
            answers.update(await asyncio.gather(*logins))
            assert answers.total() < 1000
        assert await log_in(port, f"test/{devices.healthy}", TOKEN) == ACCEPTED
    assert answers[ACCEPTED] >= 20


@pytest.mark.parametrize(
    ("topic", "is_sent"),
    [
        ("{0.own}/telemetry", True),
        ("{0.own}/commands", False),
        ("{0.others}/telemetry", False),
        ("{0.own}/shadow/delta", False),
        ("$MQTT/sess/x", False),
    ],
)
async def test_a_will_may_do_what_the_device_may(  # noqa: PLR0917
    nats_server: NatsServer,
    postgres_dsn: str,
    devices: Devices,
    broker: Broker,
    heard: "asyncio.Queue[Message]",
    topic: str,
    is_sent: bool,
) -> None:
    async with serving(nats_server, postgres_dsn):
        client, name = await RawMqtt.open(nats_server.mqtt_port), f"test/{devices.hostile}"
        flags = CLEAN | WILL_QOS_1 | WILL_RETAINED
        will = text(topic.format(devices)) + text("will")
        answer = await client.connect(name, name, TOKEN, flags=flags, will=will)
        await client.close()
        assert answer in {ACCEPTED, NOT_AUTHORIZED, None}
        if is_sent:
            message = await asyncio.wait_for(heard.get(), 60)
            assert (message.subject, message.data) == (f"telemetry.test.{devices.hostile}", b"will")
        async with await entered(nats_server, devices.healthy) as other:
            await other.deliver(f"{devices.others}/telemetry", b"after")
        message = await asyncio.wait_for(heard.get(), 60)
        assert (message.subject, message.data) == (f"telemetry.test.{devices.healthy}", b"after")
    retained = await counts(broker, "$MQTT_rmsgs", devices)
    assert retained == {devices.hostile: int(is_sent), devices.healthy: 0}


@pytest.mark.parametrize(
    "topic",
    ["{0.own}/+", "{0.own}/#", "#", "", "{0.own}/a\0b", "/", "//", "{0.own}//", "x" * 65_535],
    ids=range(9),
)
async def test_a_topic_that_is_none_disturbs_nobody_else(
    nats_server: NatsServer,
    postgres_dsn: str,
    devices: Devices,
    heard: "asyncio.Queue[Message]",
    topic: str,
) -> None:
    async with serving(nats_server, postgres_dsn):
        async with (
            await entered(nats_server, devices.healthy) as other,
            await entered(nats_server, devices.hostile) as client,
        ):
            await client.publish(topic.format(devices), b"{}", qos=1)
            await client.publish(f"{devices.own}/{'y' * 60_000}", b"{}", qos=1)
            await client.subscribe_unchecked(topic.format(devices) or "$")
            await other.deliver(f"{devices.others}/telemetry", b"last")

        async def is_last() -> bool:
            return (await heard.get()).data == b"last"

        await eventually(is_last, "the other device's message")
