"""The bridge with a real Mosquitto and a real nats-server: what is acknowledged is stored."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from functions.domain.downlink_marks import DownlinkMarks
from functions.mqtt_bridge.connection import MqttConnection
from functions.mqtt_bridge.settings import BrokerSettings
from runtime.broker.connection import Broker
from tests.support.certificates import self_signed
from tests.support.gateway import read_stored
from tests.support.host import eventually, running_host
from tests.support.mosquitto import Mosquitto, mosquitto_hash
from tests.support.mqtt import MqttSession, publish_with_dup
from tests.support.mqtt_bridge import (
    BRIDGE_STREAM,
    COMMANDS,
    MARK_KEY,
    TELEMETRY,
    bridging,
    connected,
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

REFUSED = "The MQTT bridge is not connected."


@pytest.fixture
async def streams(broker: Broker) -> AsyncIterator[None]:
    async with made_streams(broker):
        yield


async def test_what_a_device_publishes_is_stored_in_its_envelope(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, '{"metrics": {"temp": 21}}')
        assert await stored(broker, 1) == {"TELEMETRY": 1}
    message = await read_stored(broker, "TELEMETRY")
    assert message.subject == "telemetry.t1"
    assert message.document["topic"] == TELEMETRY
    assert json.loads(message.document["payload"]) == {"metrics": {"temp": 21}}


async def test_nothing_that_a_device_publishes_is_dropped(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    odd: list[tuple[str, str | bytes]] = [
        ("tenant/t1/device/d1/shadow/reported", '{"reported": {}}'),
        ("tenant/t1/device/d.1/commands/ack", '{"command_id": "c"}'),
        ("tenant/t1/device/d1/commands", "a command that the platform has not given"),
        ("tenant/*/device/>/telemetry", "{}"),
        ("tenant/t1/device/d1/x/y/z/too/deep", "{}"),
        ("tenant/t.1/device//telemetry", "{}"),
        (TELEMETRY, "no JSON"),
        (TELEMETRY, b"\xff\x00\xfe"),
        (TELEMETRY, ""),
        (TELEMETRY, "x" * 3_000_000),
        (TELEMETRY, b"\xff" * 3_000_000),
    ]
    async with bridging(nats_server, mosquitto):
        for topic, payload in odd:
            await publish(mosquitto, topic, payload)
        found = await stored(broker, len(odd))
    assert set(found) == {"TELEMETRY", "SHADOW", "COMMANDS", "UNMAPPED"}
    assert sum(found.values()) == len(odd)


async def test_what_is_not_stored_is_not_acknowledged_and_comes_again(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    closed = {"name": "TELEMETRY", "subjects": ["elsewhere.>"], "storage": "memory"}
    await broker.api("STREAM.UPDATE.TELEMETRY", closed)
    payloads = [f"{number}" for number in range(30)]
    async with bridging(nats_server, mosquitto, receive_maximum=10):
        await publish(mosquitto, TELEMETRY, *payloads)
        await eventually(lambda: sent(mosquitto, 10), "ten messages on their way")
    # The broker has sent no more than the bridge may hold, and has no PUBACK for these.
    assert "Received PUBACK from runtime-bridge-1" not in mosquitto.log
    assert await sent(mosquitto, 11) is None

    await broker.api("STREAM.UPDATE.TELEMETRY", {**closed, "subjects": ["telemetry.>"]})
    async with bridging(nats_server, mosquitto, receive_maximum=10):
        assert await stored(broker, 30) == {"TELEMETRY": 30}
    assert await payloads_of(broker, 30) == payloads


async def test_the_envelope_says_that_a_message_has_waited_at_the_broker(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        pass
    await publish(mosquitto, TELEMETRY, "kept")
    async with bridging(nats_server, mosquitto):
        await stored(broker, 1)
        before = datetime.now(UTC)
        await publish(mosquitto, TELEMETRY, "at once")
        await stored(broker, 2)
    found = [(await read_stored(broker, "TELEMETRY", number)).document for number in (1, 2)]
    kept, at_once = (datetime.fromisoformat(each["ts"]) for each in found)
    # Ingest takes as late what is older than two seconds.
    assert before - kept > timedelta(seconds=8)
    assert at_once >= before


async def test_an_outage_of_a_stream_holds_the_messages_up_and_loses_none(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    closed = {"name": "TELEMETRY", "subjects": ["elsewhere.>"], "storage": "memory"}
    async with bridging(nats_server, mosquitto, receive_maximum=10):
        await broker.api("STREAM.UPDATE.TELEMETRY", closed)
        payloads = [f"{number}" for number in range(30)]
        await publish(mosquitto, TELEMETRY, *payloads)
        await eventually(lambda: sent(mosquitto, 10), "ten messages on their way")
        await broker.api("STREAM.UPDATE.TELEMETRY", {**closed, "subjects": ["telemetry.>"]})
        assert await stored(broker, 30) == {"TELEMETRY": 30}
    assert await payloads_of(broker, 30) == payloads


async def test_the_platform_s_own_messages_to_devices_are_no_device_s(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    marks, other = DownlinkMarks(SecretStr(MARK_KEY)), DownlinkMarks(SecretStr("of another one"))
    mark = marks.make(COMMANDS, b"{}")
    counted = "Messages of the platform to devices came back, and were not stored."
    with capture_logs() as lines:
        async with bridging(nats_server, mosquitto):
            link = await MqttConnection.open(BrokerSettings(url=mosquitto.url), client_id="")
            for _ in range(2):
                await link.publish(COMMANDS, b"{}", mark=mark)
            # What anybody can write, the mark of something else, and of another installation.
            forged = (
                (COMMANDS, b"{}", "runtime"),
                (COMMANDS, b"{ }", mark),
                (COMMANDS.replace("d1", "d2"), b"{}", mark),
                (COMMANDS, b"{}", other.make(COMMANDS, b"{}")),
                # Marks are for topics to devices only.
                (TELEMETRY, b"{}", marks.make(TELEMETRY, b"{}")),
            )
            for topic, payload, wrong in forged:
                await link.publish(topic, payload, mark=wrong)
            link.close()
            assert await stored(broker, len(forged)) == {"TELEMETRY": len(forged)}
    found = [await read_stored(broker, "TELEMETRY", number + 1) for number in range(len(forged))]
    assert [each.document["topic"] for each in found] == [topic for topic, _, _ in forged]
    assert sum(each["messages"] for each in lines if each["event"] == counted) == 2


async def test_a_message_that_a_device_repeats_is_stored_twice(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        await publish_with_dup(mosquitto.port, TELEMETRY)
        assert await stored(broker, 2) == {"TELEMETRY": 2}


async def test_of_huge_messages_a_part_is_kept_and_they_hold_up_no_others(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto, receive_maximum=5):
        await publish(mosquitto, TELEMETRY, *["x" * 20_000_000] * 6)
        await publish(mosquitto, TELEMETRY, *["{}"] * 20)
        assert await stored(broker, 26) == {"TELEMETRY": 26}
    first = await read_stored(broker, "TELEMETRY")
    assert first.document["payload_cut_from_bytes"] == 20_000_000
    assert len(first.data) <= 1_000_000


async def test_a_broker_that_has_lost_a_session_is_told_of(
    nats_server: NatsServer, mosquitto: Mosquitto, streams: None, tmp_path: Path
) -> None:
    lost = "The MQTT broker has lost the session, with what it kept for it."
    with capture_logs() as lines:
        async with bridging(nats_server, mosquitto):
            mosquitto.kill()
            (tmp_path / "mosquitto" / "mosquitto.db").unlink(missing_ok=True)
            mosquitto.start()
            told = await eventually(lambda: logged(lines, lost), "the warning")
    assert told["log_level"] == "warning"


async def test_without_its_stream_the_bridge_says_why_it_has_no_session(
    nats_server: NatsServer, mosquitto: Mosquitto
) -> None:
    told = "Hosts cannot share the sessions of the MQTT bridge: without its stream a host has none."
    with capture_logs() as lines:
        async with running_host(nats_server.url, manifest(mosquitto)):
            found = await eventually(lambda: logged(lines, told), "the warning")
    assert (found["stream"], found["log_level"]) == ("MQTT_BRIDGE", "warning")


async def test_messages_with_qos_0_are_stored_too(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, *["{}"] * 3000, qos=0)
        assert await stored(broker, 3000) == {"TELEMETRY": 3000}


async def test_retained_messages_come_once_and_not_with_each_subscription(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    def retain() -> None:
        with MqttSession(mosquitto.port) as session:
            session.publish(TELEMETRY, '{"retained": 1}', retain=True)

    await asyncio.to_thread(retain)
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, '{"live": 1}')
        assert await stored(broker, 1) == {"TELEMETRY": 1}
    assert await payloads_of(broker, 1) == ['{"live": 1}']


async def test_a_broker_that_restarts_is_found_again_with_its_session(
    nats_server: NatsServer, broker: Broker, mosquitto: Mosquitto, streams: None
) -> None:
    async with bridging(nats_server, mosquitto):
        await publish(mosquitto, TELEMETRY, "1")
        await stored(broker, 1)
        mosquitto.stop()
        mosquitto.start()
        await connected(mosquitto, 2)
        await publish(mosquitto, TELEMETRY, "2")
        assert await stored(broker, 2) == {"TELEMETRY": 2}
    assert "runtime-bridge-1 0 tenant/+/device/+/#" not in mosquitto.log


async def test_a_broker_with_tls_and_passwords_lets_only_its_bridge_in(
    nats_server: NatsServer, broker: Broker, streams: None, tmp_path: Path
) -> None:
    server, own = self_signed("localhost", tmp_path), self_signed("bridge", tmp_path)
    passwords = tmp_path / "passwords"
    passwords.write_text(f"bridge:{mosquitto_hash('the password')}\n")
    mosquitto = Mosquitto(
        tmp_path / "tls",
        listener=f"certfile {server}\nkeyfile {server}\ncafile {own}\nrequire_certificate true",
        more=f"allow_anonymous false\npassword_file {passwords}",
    )
    login = {
        "url": f"mqtts://localhost:{mosquitto.port}",
        "authorities": str(server),
        "client_certificate": str(own),
        "username": "bridge",
    }
    try:
        with capture_logs() as lines:
            async with running_host(
                nats_server.url,
                manifest(mosquitto, **login, password="wrong"),
                streams=BRIDGE_STREAM,
            ):
                refused = await eventually(lambda: logged(lines, REFUSED), "a refusal in the log")
        assert (refused["log_level"], refused["reason"]) == (
            "error",
            "the broker refused the connection: Not authorized",
        )
        assert "wrong" not in repr(lines)
        async with bridging(nats_server, mosquitto, **login, password="the password"):
            pass
        with capture_logs() as lines:
            untrusted = {**login, "authorities": str(own), "password": "the password"}
            async with running_host(
                nats_server.url, manifest(mosquitto, **untrusted), streams=BRIDGE_STREAM
            ):
                refused = await eventually(lambda: logged(lines, REFUSED), "a refusal in the log")
        assert "certificate verify failed" in refused["reason"]
    finally:
        mosquitto.stop()
