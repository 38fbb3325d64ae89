"""The embedded nats-server's configuration, tested by what clients can and cannot do."""

import asyncio
import json
from collections.abc import Callable

import httpx
import nats
import pytest
from nats.js.api import StreamConfig

from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer, run_apart

_STREAMS = {
    "TELEMETRY": ["telemetry.>"],
    "SHADOW": ["shadow.>"],
    "COMMANDS": ["commands.>"],
    "UNMAPPED": ["tenant.>"],
}


@pytest.fixture(scope="module", autouse=True)
def _streams(nats_server: NatsServer) -> None:
    async def make() -> None:
        client = await nats.connect(nats_server.url)
        for name, subjects in _STREAMS.items():
            await client.jetstream().add_stream(StreamConfig(name=name, subjects=subjects))
        await client.close()

    run_apart(make)


def _service(server: NatsServer) -> MqttSession:
    return MqttSession(server.mqtt_port, server.mqtt_user, server.mqtt_password)


async def _last(server: NatsServer, stream: str, subject: str) -> bytes | None:
    client = await nats.connect(server.url)
    stored = await client.jetstream().get_last_msg(stream, subject)
    await client.close()
    return stored.data


@pytest.mark.parametrize(
    ("topic", "stream", "subject"),
    [
        ("telemetry", "TELEMETRY", "telemetry.test.dev1"),
        ("heartbeat", "TELEMETRY", "telemetry.test.dev1.heartbeat"),
        ("event", "TELEMETRY", "telemetry.test.dev1.event"),
        ("shadow/reported", "SHADOW", "shadow.test.dev1.reported"),
        ("shadow/update", "SHADOW", "shadow.test.dev1.update"),
        ("shadow/get", "SHADOW", "shadow.test.dev1.get"),
        ("shadow/delete", "SHADOW", "shadow.test.dev1.delete"),
        ("shadow/name/n:1/reported", "SHADOW", "shadow.test.dev1.name.n:1.reported"),
        ("shadow/name/n/update", "SHADOW", "shadow.test.dev1.name.n.update"),
        ("shadow/name/n/get", "SHADOW", "shadow.test.dev1.name.n.get"),
        ("shadow/name/n/delete", "SHADOW", "shadow.test.dev1.name.n.delete"),
        ("shadow/delta", "UNMAPPED", "tenant.test.device.dev1.shadow.delta"),
        ("shadow/name/n/delta", "UNMAPPED", "tenant.test.device.dev1.shadow.name.n.delta"),
        ("commands/ack", "COMMANDS", "commands.test.dev1.ack"),
        ("weather", "UNMAPPED", "tenant.test.device.dev1.weather"),
        ("shadow/reported/more", "UNMAPPED", "tenant.test.device.dev1.shadow.reported.more"),
    ],
)
async def test_a_topic_becomes_a_subject_that_keeps_tenant_and_device(
    nats_server: NatsServer, topic: str, stream: str, subject: str
) -> None:
    with _service(nats_server) as session:
        session.publish(f"tenant/test/device/dev1/{topic}", f"body of {topic}")
    assert await _last(nats_server, stream, subject) == f"body of {topic}".encode()


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_every_quality_of_service_arrives(nats_server: NatsServer, qos: int) -> None:
    client = await nats.connect(nats_server.url)
    arrivals = await client.subscribe(f"telemetry.test.qos{qos}")
    await client.flush()
    with _service(nats_server) as session:
        session.publish(f"tenant/test/device/qos{qos}/telemetry", "{}", qos)
        assert (await arrivals.next_msg(10)).data == b"{}"
    await client.close()


@pytest.mark.parametrize(
    ("username", "password"),
    [
        (None, None),
        ("", ""),
        ("local", ""),
        ("local", None),
        ("service_pulse", "wrong"),
        ("service_pulse", ""),
        ("service_pulse", None),
    ],
)
async def test_an_mqtt_client_without_the_right_name_and_password_is_refused(
    nats_server: NatsServer, username: str | None, password: str | None
) -> None:
    with MqttSession(nats_server.mqtt_port, username, password) as session:
        assert session.connected != "Success"


async def test_the_mqtt_user_cannot_connect_as_a_nats_client(nats_server: NatsServer) -> None:
    # Without the library: nats-py leaves the socket of a refused connection open.
    reader, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
    shown = {"user": nats_server.mqtt_user, "pass": nats_server.mqtt_password, "verbose": False}
    await reader.readline()
    writer.write(f"CONNECT {json.dumps(shown)}\r\nPING\r\n".encode())
    assert (await reader.readline()).startswith(b"-ERR 'Authorization Violation'")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("topic", ["telemetry/test", "routes/test", "$JS/API/STREAM/DELETE/X"])
async def test_the_mqtt_user_can_publish_nowhere_else(nats_server: NatsServer, topic: str) -> None:
    client = await nats.connect(nats_server.url)
    arrivals = await client.subscribe(">")
    await client.flush()
    with _service(nats_server) as session:
        session.publish(topic, "forged", qos=0)
        session.publish("tenant/test/device/dev1/telemetry", "allowed")
        subjects = []
        while "telemetry.test.dev1" not in subjects:
            message = await arrivals.next_msg(10)
            subjects.append(message.subject)
            assert message.data != b"forged"
    await client.close()


async def test_a_device_hears_what_is_published_for_it(nats_server: NatsServer) -> None:
    client = await nats.connect(nats_server.url)
    with _service(nats_server) as session:
        assert session.subscribe("tenant/test/device/dev1/commands") == "Granted QoS 1"
        await client.publish("tenant.test.device.dev1.commands", b"reboot")
        await client.flush()
        message = session.received.get(timeout=60)
    assert (message.topic, message.payload) == ("tenant/test/device/dev1/commands", b"reboot")
    await client.close()


@pytest.mark.parametrize("topic", ["#", "telemetry/#", "_INBOX/#", "$JS/#"])
async def test_the_mqtt_user_can_listen_nowhere_else(nats_server: NatsServer, topic: str) -> None:
    with _service(nats_server) as session:
        assert not session.subscribe(topic).startswith("Granted")


async def test_a_message_of_several_megabytes_reaches_the_runtime(nats_server: NatsServer) -> None:
    client = await nats.connect(nats_server.url)
    arrivals = await client.subscribe("telemetry.test.large")
    await client.flush()
    with _service(nats_server) as session:
        session.publish("tenant/test/device/large/telemetry", b"x" * 4_000_000)
        assert len((await arrivals.next_msg(10)).data) == 4_000_000
    await client.close()


def test_monitoring_says_that_the_server_is_healthy(nats_server: NatsServer) -> None:
    answer = httpx.get(f"{nats_server.monitor_url}/healthz")
    assert answer.json() == {"status": "ok"}


@pytest.mark.nats_cli
def test_the_official_command_line_needs_no_credentials(
    nats_server: NatsServer, nats_cli: Callable[..., str]
) -> None:
    assert "TELEMETRY" in nats_cli(nats_server.url, "stream", "info", "TELEMETRY")


async def test_data_survives_sigkill_of_the_server(nats_server: NatsServer) -> None:
    client = await nats.connect(nats_server.url)
    await client.jetstream().publish("telemetry.test.killed", b"stored")
    await client.close()
    ports = nats_server.ports
    nats_server.kill()
    nats_server.start()
    assert nats_server.ports == ports
    assert await _last(nats_server, "TELEMETRY", "telemetry.test.killed") == b"stored"


async def test_a_host_that_is_blocked_for_long_is_not_cut_off(nats_server: NatsServer) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        settings = (await client.get(f"{nats_server.monitor_url}/varz")).json()

    assert settings["ping_interval"] >= 3600e9
