"""The MQTT bridge under what devices, brokers and people may do to it, with a real Mosquitto."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from functions.domain.downlink_marks import DownlinkMarks
from functions.mqtt_bridge.connection import MqttConnection
from functions.mqtt_bridge.settings import BrokerSettings
from runtime.broker.connection import Broker
from tests.support.certificates import self_signed
from tests.support.gateway import count_stored, read_stored
from tests.support.host import eventually, running_host
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.mqtt import MqttSession, publish_many, publish_with_properties
from tests.support.mqtt_bridge import (
    BRIDGE_STREAM,
    MARK_KEY,
    TELEMETRY,
    bridging,
    logged,
    made_streams,
    manifest,
    payloads_of,
    publish,
    sent,
    stored,
)
from tests.support.servers import NatsServer

pytestmark = pytest.mark.mosquitto

CONNECTED = "The MQTT bridge is connected."
MEGABYTE = 1_000_000
SESSION = "runtime-bridge-1"
TOPICS = "tenant/+/device/+/#"


@pytest.fixture
async def streams(broker: Broker) -> AsyncIterator[None]:
    async with made_streams(broker):
        yield


@asynccontextmanager
async def closed_telemetry(broker: Broker) -> AsyncIterator[None]:
    """No stream takes telemetry inside the block."""
    config = {"name": "TELEMETRY", "subjects": ["elsewhere.>"], "storage": "memory"}
    await broker.api("STREAM.UPDATE.TELEMETRY", config)
    yield
    await broker.api("STREAM.UPDATE.TELEMETRY", {**config, "subjects": ["telemetry.>"]})


def connections(mosquitto: Mosquitto) -> int:
    return mosquitto.log.count(f" as {SESSION} (")


async def test_more_than_a_session_may_hold_waits_at_the_broker_and_comes(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        pass
    # The broker's answer to the subscription comes after them.
    await publish(mosquitto, TELEMETRY, *(f"{number:0>{MEGABYTE}}" for number in range(100)))
    async with bridging(nats_server, mosquitto, max_publish_bytes=MEGABYTE):
        assert await stored(broker, 100) == {"TELEMETRY": 100}


async def test_a_session_whose_place_for_messages_is_full_subscribes_anew(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    payloads = [f"{number:0>30000}" for number in range(40)]
    async with bridging(nats_server, mosquitto, max_waiting_bytes=65_536):
        async with closed_telemetry(broker):
            await publish(mosquitto, TELEMETRY, *payloads)
            with capture_logs() as lines:
                refused = "Messages are not stored; the MQTT broker keeps them."
                outage = await eventually(lambda: logged(lines, refused), "an outage in the log")
            # After an outage the session wants another subscription identifier.
        assert await stored(broker, 40) == {"TELEMETRY": 40}
        await publish(mosquitto, TELEMETRY, "after it")
        assert await stored(broker, 41) == {"TELEMETRY": 41}
    assert (outage["subject"], outage["reason"]) == ("telemetry.t1", "no stream took it")
    assert await payloads_of(broker, 41) == [*payloads, "after it"]
    assert connections(mosquitto) == 1


@pytest.mark.parametrize(
    "properties",
    [
        [("a", "\ufeff")],
        [("\ufeff", "a")],
        [("sent-by", "\ufeff")],
        [("sent-by", "runtime/" + "0" * 64)],
        [("\u200b\u202e", "\U0010fffd"), ("", "")],
        [("a", "b" * 60_000)],
        [("", "")] * 8_000,
        [("", "")] * 200_000,
    ],
    ids=["a value", "a name", "a mark", "a forged mark", "others", "long", "40 KB", "1 MB"],
)
async def test_no_property_of_a_message_keeps_it_or_the_others_away(
    nats_server: NatsServer,
    broker: Broker,
    mosquitto: Mosquitto,
    streams: None,
    properties: list[tuple[str, str]],
) -> None:
    async with bridging(nats_server, mosquitto):
        await asyncio.to_thread(
            publish_with_properties, mosquitto.port, TELEMETRY, "hostile", properties
        )
        await publish(mosquitto, TELEMETRY, "{}")
        assert await stored(broker, 2) == {"TELEMETRY": 2}
    assert await payloads_of(broker, 2) == ["hostile", "{}"]
    assert connections(mosquitto) == 1


async def test_a_topic_with_a_code_point_that_mqtt_leaves_open_is_quarantined(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    topics = ["tenant/t1/device/d\ufeff1/telemetry", "tenant/\ufeff/device/d1/telemetry"]
    async with bridging(nats_server, mosquitto):
        for topic in topics:
            await publish(mosquitto, topic, "{}")
        assert await stored(broker, 2) == {"TELEMETRY": 1, "UNMAPPED": 1}
    assert connections(mosquitto) == 1
    found = [await read_stored(broker, name) for name in ("TELEMETRY", "UNMAPPED")]
    assert [each.document["topic"] for each in found] == topics


async def test_messages_with_qos_2_are_stored_once(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    payloads = [f"{number}" for number in range(50)]
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, *payloads, qos=2)
        assert await stored(broker, 50) == {"TELEMETRY": 50}
    assert await payloads_of(broker, 50) == payloads


async def test_a_session_that_another_program_left_with_qos_2_is_emptied(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    def subscribe() -> None:
        with MqttSession(mosquitto.port, client_id=SESSION, keeps_session=True) as session:
            session.subscribe(TOPICS, 2)

    await asyncio.to_thread(subscribe)
    payloads = [f"{number}" for number in range(50)]
    await publish(mosquitto, TELEMETRY, *payloads, qos=2)
    async with bridging(nats_server, mosquitto, receive_maximum=10):
        assert await stored(broker, 50) == {"TELEMETRY": 50}
        await publish(mosquitto, TELEMETRY, "after them")
        assert await stored(broker, 51) == {"TELEMETRY": 51}
    assert await payloads_of(broker, 51) == [*payloads, "after them"]


async def test_what_comes_while_broker_and_bridge_restart_is_stored(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    payloads = ["before", "between", "after"]
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, payloads[0])
        await stored(broker, 1)
    mosquitto.stop()
    mosquitto.start()
    # Mosquitto 2.0.11 has forgotten shared subscriptions now.
    await publish(mosquitto, TELEMETRY, payloads[1])
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, payloads[2])
        await stored(broker, 3)
    assert await payloads_of(broker, 3) == payloads


async def test_another_number_of_sessions_stores_nothing_twice(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    for count, sessions in enumerate((1, 2, 1), 1):
        with capture_logs() as lines:
            async with bridging(nats_server, mosquitto, sessions=sessions):

                async def are_connected(lines: Any = lines, sessions: int = sessions) -> bool:
                    return [each["event"] for each in lines].count(CONNECTED) == sessions

                await eventually(are_connected, f"{sessions} sessions")
                await publish(mosquitto, TELEMETRY, *["{}"] * 20)
                found = await stored(broker, 20 * count)
        assert found == {"TELEMETRY": 20 * count}


async def test_a_broker_that_grants_no_qos_1_is_told_of(
    nats_server: NatsServer, broker: Broker, streams: None, tmp_path: Path
) -> None:
    mosquitto = Mosquitto(tmp_path / "qos", listener="max_qos 0")
    told = "The MQTT broker delivers with QoS 0: what is not stored at once is lost."
    try:
        with capture_logs() as lines:
            async with running_host(nats_server.url, manifest(mosquitto), streams=BRIDGE_STREAM):
                found = await eventually(lambda: logged(lines, told), "the error")
                await publish(mosquitto, TELEMETRY, "{}", qos=0)
                await stored(broker, 1)
        assert found["log_level"] == "error"
    finally:
        mosquitto.stop()


async def test_a_flood_of_retained_messages_is_stored_once_and_never_again(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    topics = [f"tenant/t1/device/d{number}/telemetry" for number in range(1000)]

    def retain() -> None:
        with MqttSession(mosquitto.port) as session:
            for topic in topics:
                session.publish(topic, "{}", 0, retain=True)
            session.publish(TELEMETRY, "the last", 1)

    async with bridging(nats_server, mosquitto):
        await asyncio.to_thread(retain)
        await stored(broker, 1001)
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, "after them")
        assert await stored(broker, 1002) == {"TELEMETRY": 1002}


async def test_an_outage_longer_than_the_keep_alive_ends_no_connection(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    settings = {"keep_alive_s": 5, "max_waiting_bytes": 65_536}
    payloads = [f"{number:0>30000}" for number in range(40)]
    async with bridging(nats_server, mosquitto, **settings):
        async with closed_telemetry(broker):
            # Without a confirmation nobody would send these again.
            await publish(mosquitto, TELEMETRY, *payloads[:2], qos=0)
            await publish(mosquitto, TELEMETRY, *payloads[2:])

            async def has_asked() -> bool:
                return mosquitto.log.count(f"Received PINGREQ from {SESSION}") >= 4

            await eventually(has_asked, "four questions whether the broker is there", 60)
        assert await stored(broker, 40) == {"TELEMETRY": 40}
    assert await payloads_of(broker, 40) == payloads
    assert connections(mosquitto) == 1


async def test_a_broken_connection_loses_nothing_that_has_come(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    payloads = [f"{number}" for number in range(20)]
    async with bridging(nats_server, mosquitto):
        async with closed_telemetry(broker):
            await publish(mosquitto, TELEMETRY, *payloads, qos=0)
            await eventually(lambda: sent(mosquitto, 20), "twenty messages on their way")
            mosquitto.kill()
            mosquitto.start()
        assert await stored(broker, 20) == {"TELEMETRY": 20}
    assert await payloads_of(broker, 20) == payloads


async def test_a_session_ends_at_once_however_much_waits_at_the_broker(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    count = 30_000
    async with bridging(nats_server, mosquitto):
        pass
    await asyncio.to_thread(publish_many, mosquitto.port, TELEMETRY, count)
    async with bridging(nats_server, mosquitto):
        await stored(broker, 1)
    # What is stored at the end makes no room for more.
    assert (await count_stored(broker))["TELEMETRY"] < count / 2
    async with bridging(nats_server, mosquitto):
        assert await stored(broker, count) == {"TELEMETRY": count}


async def test_a_host_alone_takes_all_sessions_at_once(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    # With one session in two seconds this would take longer than the helper waits.
    async with bridging(nats_server, mosquitto, sessions=40):
        await publish(mosquitto, TELEMETRY, *["{}"] * 80)
        assert await stored(broker, 80) == {"TELEMETRY": 80}


async def test_a_host_that_stops_leaves_its_places_and_its_share_at_once(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto, sessions=2):
        question = {"subjects_filter": "mqtt_bridge.>"}
        found = await broker.api("STREAM.INFO.MQTT_BRIDGE", question)
        assert len(found["state"]["subjects"]) == 3
    found = await broker.api("STREAM.INFO.MQTT_BRIDGE", question)
    assert not found["state"].get("subjects")


async def test_a_broker_that_never_answers_does_not_hold_up_the_end(
    nats_server: NatsServer, mosquitto: Mosquitto, streams: None
) -> None:
    came = asyncio.Event()
    held: list[asyncio.StreamWriter] = []

    def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        came.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop = asyncio.get_running_loop()
    functions = manifest(mosquitto, url=url, connect_timeout_s=60)
    async with server:
        async with running_host(nats_server.url, functions, streams=BRIDGE_STREAM):
            await came.wait()
            began_s = loop.time()
        assert loop.time() - began_s < 20
        for writer in held:
            writer.close()


@pytest.mark.parametrize("max_age", ["20s", "0s"])
async def test_another_life_of_places_in_the_stream_than_in_the_settings_is_told(
    nats_server: NatsServer, mosquitto: Mosquitto, streams: None, max_age: str
) -> None:
    told = (
        "The stream of the MQTT bridge keeps the record of a host for another time than the setting"
        " place_life_s says."
    )
    stream = {"MQTT_BRIDGE": {**BRIDGE_STREAM["MQTT_BRIDGE"], "max_age": max_age}}
    with capture_logs() as lines:
        async with running_host(nats_server.url, manifest(mosquitto), streams=stream):
            found = await eventually(lambda: logged(lines, told), "the error")
    assert (found["log_level"], found["max_age_s"]) == ("error", float(max_age[:-1]))


async def test_a_large_message_leaves_room_for_those_of_others(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, "x" * MEGABYTE, b"\xff" * MEGABYTE, "x" * 60_000)
        await stored(broker, 3)
    found = [await read_stored(broker, "TELEMETRY", number) for number in (1, 2, 3)]
    assert all(len(each.data) <= 65_536 for each in found)
    assert [each.document.get("payload_cut_from_bytes") for each in found] == [
        MEGABYTE,
        MEGABYTE,
        None,
    ]


async def test_a_message_that_its_stream_finds_too_large_is_cut_and_holds_up_no_others(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    config = {"name": "TELEMETRY", "subjects": ["telemetry.>"], "storage": "memory"}
    await broker.api("STREAM.UPDATE.TELEMETRY", {**config, "max_msg_size": 8_000})
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, "x" * 30_000, b"\xff" * 9_000, "{}")
        await publish(mosquitto, "tenant/t1/device/d1/shadow/reported", "y" * 30_000)
        assert await stored(broker, 4) == {"TELEMETRY": 3, "SHADOW": 1}
    found = [await read_stored(broker, "TELEMETRY", number) for number in (1, 2, 3)]
    cut = [each.document.get("payload_cut_from_bytes") for each in found]
    assert sorted(cut, key=str) == [30_000, 9_000, None]
    other = await read_stored(broker, "SHADOW")
    assert other.document["payload"] == "y" * 30_000


async def test_a_large_message_of_the_platform_itself_is_known(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    topic, document = "tenant/t1/device/d1/shadow/update/documents", b"x" * 250_000
    async with bridging(nats_server, mosquitto):
        link = await MqttConnection.open(BrokerSettings(url=mosquitto.url), client_id="")
        mark = DownlinkMarks(SecretStr(MARK_KEY)).make(topic, document)
        await link.publish(topic, document, mark=mark)
        # Nobody else can have the platform's word for what is larger, nor make the bridge check it.
        await link.publish(topic, b"x" * 2 * MEGABYTE, mark=mark)
        link.close()
        assert await stored(broker, 1) == {"TELEMETRY": 1}
    assert (await read_stored(broker, "TELEMETRY")).document["payload_cut_from_bytes"]


async def test_encrypted_connections_leave_nothing_unread(
    nats_server: NatsServer, broker: Broker, streams: None, tmp_path: Path
) -> None:
    certificate = self_signed("localhost", tmp_path)
    plain_port = free_port()
    mosquitto = Mosquitto(
        tmp_path / "tls",
        listener=f"certfile {certificate}\nkeyfile {certificate}",
        more=f"listener {plain_port} 127.0.0.1\nallow_anonymous true",
    )
    settings = {
        "url": f"mqtts://localhost:{mosquitto.port}",
        "authorities": str(certificate),
        "max_waiting_bytes": 65_536,
    }
    try:
        async with bridging(nats_server, mosquitto, **settings):
            await asyncio.to_thread(publish_many, plain_port, TELEMETRY, 5_000)
            assert await stored(broker, 5_000) == {"TELEMETRY": 5_000}
    finally:
        mosquitto.stop()


async def test_a_host_that_has_lost_its_place_ends_the_session(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        # As another host does that believes this one to be dead.
        question = {"last_by_subj": "mqtt_bridge.places.1"}
        found = await broker.api("STREAM.MSG.GET.MQTT_BRIDGE", question)
        await broker.api("STREAM.MSG.DELETE.MQTT_BRIDGE", {"seq": found["message"]["seq"]})
        await broker.publish("mqtt_bridge.places.1", b"another host")

        async def has_left() -> bool:
            return f"Received DISCONNECT from {SESSION}" in mosquitto.log

        await eventually(has_left, "the end of the session")
        # The other one never comes: its record ends, and the session is with this host again.
        await publish(mosquitto, TELEMETRY, "{}")
        assert await stored(broker, 1) == {"TELEMETRY": 1}
    assert connections(mosquitto) == 2
