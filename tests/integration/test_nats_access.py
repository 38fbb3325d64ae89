"""Permissions at the embedded nats-server of clients without a name."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.micro
import pytest
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, RePublish, StreamConfig
from nats.micro.request import Request

from runtime.broker.connection import Broker
from runtime.broker.leases import with_leases
from runtime.broker.micro import Answer, MicroEndpoint, MicroService
from runtime.broker.streams import ensure
from runtime.embedded.credentials import SYSTEM_USER
from runtime.errors import ConfigError
from runtime.manifest import Manifest
from runtime.message import Message
from tests.support.command import runtime
from tests.support.host import fresh
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer

_OWN = (
    *("MAILBOX", "DEAD_LETTERS", "LEASES", "SCHEDULES", "ADVISORIES"),
    "$MQTT_sess",
)
_BACKBONE = ("ROUTES", "DOWNLINKS")


class RawClient:
    """A client without a library, which shows the server's answer to each command."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_cut = False

    @classmethod
    async def connect(cls, server: NatsServer, **shown: str) -> "RawClient":
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await reader.readline()
        options = {"verbose": False, "headers": True, **shown}
        writer.write(f"CONNECT {json.dumps(options)}\r\n".encode())
        return cls(reader, writer)

    async def say(self, command: str) -> list[str]:
        """The server's answer, up to its PONG or the end of the connection."""
        self._writer.write(f"{command}\r\nPING\r\n".encode())
        lines = []
        while (line := await self._read()) != "PONG" and not self.is_cut:
            lines.append(line)
        return lines

    async def _read(self) -> str:
        try:
            line = await self._reader.readline()
        except ConnectionResetError:
            line = b""
        self.is_cut = not line
        return line.decode().strip()

    async def publish(self, subject: str) -> list[str]:
        return await self.say(f"PUB {subject} 2\r\n{{}}")

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionResetError):
            await self._writer.wait_closed()


@pytest.fixture
async def nobody(nats_server: NatsServer) -> AsyncIterator[RawClient]:
    """A client without a name."""
    client = await RawClient.connect(nats_server)
    yield client
    await client.close()


@pytest.fixture
async def anonymous(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client without a name, with the client library."""
    client = await nats.connect(nats_server.anonymous_url)
    yield client
    await client.close()


@pytest.fixture
async def own_streams(broker: Broker) -> Broker:
    await ensure(broker, with_leases(Manifest.model_validate({})))
    return broker


@pytest.mark.parametrize(
    "subject",
    [
        "management.devices.rotate-token",
        "mailbox.ready.ingest",
        "dead_letters.ingest",
        "leases.ingest",
        "schedules.ingest",
        "_RUNTIME.ingest.call",
        "_RUNTIME.logs",
        "routes.acme.webhook",
        "notices.acme.ROUTE_DISABLED",
        "polled.acme.r1",
        "republish.acme.x",
        "downlinks.acme.dev1.commands.c1",
        "device_events.acme.dev1.presence",
        "mqtt_bridge.session.1",
        "sms.status",
        "tenant.acme.device.dev1.commands",
        "tenant.acme.device.d//1.routed",
        "tenant.acme.device.dev1.presence",
        "tenant.acme.device.dev1.shadow.desired",
        "tenant.acme.device.dev1.shadow.name.n.update.accepted",
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.S.C",
        "$MQTT.sess.x",
        *(
            f"$JS.API.{api}"
            for stream in _OWN
            for api in (
                f"STREAM.CREATE.{stream}",
                f"STREAM.UPDATE.{stream}",
                f"STREAM.DELETE.{stream}",
                f"STREAM.PURGE.{stream}",
                f"STREAM.RESTORE.{stream}",
                f"STREAM.MSG.DELETE.{stream}",
                f"CONSUMER.CREATE.{stream}",
                f"CONSUMER.CREATE.{stream}.name",
                f"CONSUMER.CREATE.{stream}.name.mailbox.ready.x",
                f"CONSUMER.DURABLE.CREATE.{stream}.name",
                f"CONSUMER.DELETE.{stream}.name",
                f"CONSUMER.PAUSE.{stream}.name",
                f"CONSUMER.MSG.NEXT.{stream}.name",
            )
        ),
        *(
            f"$JS.API.{api}"
            for stream in _BACKBONE
            for api in (
                f"STREAM.UPDATE.{stream}",
                f"STREAM.DELETE.{stream}",
                f"STREAM.PURGE.{stream}",
                f"STREAM.MSG.DELETE.{stream}",
                f"CONSUMER.DELETE.{stream}.name",
                f"CONSUMER.PAUSE.{stream}.name",
                f"CONSUMER.MSG.NEXT.{stream}.name",
            )
        ),
        "$JS.ACK.DOWNLINKS.downlinks-mqtt.1.1.1.1.0",
        "$JS.ACK.MAILBOX.work.1.1.1.1.0",
        "$JS.ACK._.hash.MAILBOX.work.1.1.1.1.0.x",
    ],
)
async def test_a_client_without_a_name_cannot_publish_to_what_is_the_hosts(
    nobody: RawClient, subject: str
) -> None:
    [answer] = await nobody.publish(subject)
    assert answer == f"-ERR 'Permissions Violation for Publish to \"{subject}\"'"


@pytest.mark.parametrize(
    "subject",
    [
        "telemetry.acme.dev1",
        "telemetry.acme",
        "tenant.acme.device.dev1.telemetry",
        "tenant.acme.device.dev1.shadow.update",
        "tenant.acme.device.dev1.shadow.name.n.get",
        "tenant.acme.device.dev1.commands.ack",
        "tenant.acme.device.dev1.metrics",
        "sensors.temperature.room1",
        "$SRV.PING",
        "$KV.config.key",
        "$JS.API.STREAM.CREATE.iot-sensors",
        "$JS.API.STREAM.CREATE.ROUTES",
        "$JS.API.CONSUMER.CREATE.ROUTES.route-delivery.routes.acme.webhook",
        "$JS.API.STREAM.INFO.DEAD_LETTERS",
        "$JS.API.STREAM.MSG.GET.DEAD_LETTERS",
        "$JS.API.CONSUMER.MSG.NEXT.iot-sensors.processor",
        "$JS.ACK.iot-sensors.processor.1.1.1.1.0",
    ],
)
async def test_a_client_without_a_name_can_work_with_data(nobody: RawClient, subject: str) -> None:
    assert await nobody.publish(subject) == []


@pytest.mark.parametrize("subject", ["_INBOX.runtime.>", "management.>", "_RUNTIME.>"])
async def test_a_client_without_a_name_cannot_listen_to_what_is_the_hosts(
    nobody: RawClient, subject: str
) -> None:
    [answer] = await nobody.say(f"SUB {subject} 1")
    assert answer == f"-ERR 'Permissions Violation for Subscription to \"{subject}\"'"


async def test_who_listens_to_everything_hears_no_answers_to_the_host(
    nats_server: NatsServer, anonymous: Client, broker: Broker
) -> None:
    heard = await anonymous.subscribe(">")
    await anonymous.flush()
    await broker.api("INFO")
    await broker.send("data.last", b"")
    subjects = []
    while "data.last" not in subjects:
        subjects.append((await heard.next_msg(10)).subject)
    assert not [subject for subject in subjects if subject.startswith("_INBOX.runtime")]


async def test_streams_consumers_and_key_value_buckets_work_without_a_name(
    anonymous: Client,
) -> None:
    stream, js = fresh("S"), anonymous.jetstream()
    await js.add_stream(StreamConfig(name=stream, subjects=[f"{stream}.>"]))
    await js.publish(f"{stream}.a", b"1")
    await js.add_consumer(stream, ConsumerConfig(durable_name="work"))
    subscription = await js.pull_subscribe_bind("work", stream)
    [message] = await subscription.fetch(1)
    await message.ack_sync()
    bucket = await js.create_key_value(bucket=stream)
    await bucket.put("key", b"value")
    assert (await bucket.get("key")).value == b"value"
    await js.delete_stream(stream)


async def test_a_micro_service_without_a_name_answers_the_host(
    anonymous: Client, broker: Broker
) -> None:
    async def answer(request: Request) -> None:
        await request.respond(b"answered")

    subject = fresh("echo")
    service = await nats.micro.add_service(anonymous, name="echo", version="1.0.0")
    await service.add_endpoint(name="echo", subject=subject, handler=answer)
    await anonymous.flush()
    assert (await broker.request(subject, b"", timeout_s=30)).data == b"answered"
    await service.stop()


async def test_a_host_without_a_password_is_told_what_it_lacks(nats_server: NatsServer) -> None:
    with pytest.raises(
        ConfigError, match=r"may not subscribe to _INBOX\.runtime\.>.*nats\.password"
    ):
        await Broker.connect(nats_server.anonymous_url, name="test")


@pytest.mark.parametrize("shown", [{}, {"user": "runtime", "pass": "wrong"}, {"user": "local"}])
async def test_nobody_without_the_password_is_let_in_where_names_are_asked_for(
    closed_server: NatsServer, shown: dict[str, str]
) -> None:
    client = await RawClient.connect(closed_server, **shown)
    # What it says before it hangs up may be lost with the connection.
    assert await client.say("") in (["-ERR 'Authorization Violation'"], [])
    assert client.is_cut
    await client.close()
    broker = await Broker.connect(closed_server.url, name="test")
    await broker.close()


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server that refuses clients without a name, and has no shared MQTT user."""

    class Closed(NatsServer):
        anonymous = False
        shared_mqtt_user = False

    server = Closed(tmp_path_factory.mktemp("closed") / "nats")
    yield server
    server.stop()


def test_the_shared_mqtt_user_can_be_switched_off(
    nats_server: NatsServer, closed_server: NatsServer
) -> None:
    answers = []
    for server in (nats_server, closed_server):
        with MqttSession(server.mqtt_port, server.mqtt_user, server.mqtt_password) as session:
            answers.append(session.connected)

    assert answers == ["Success", "Not authorized"]


def _project(folder: Path, server: NatsServer) -> dict[str, str]:
    """The environment of a command beside the host that embeds this server."""
    (folder / ".runtime").mkdir()
    (folder / ".runtime" / "nats.password").write_text(server.password + "\n")
    return {"RUNTIME_NATS_PORT": str(server.port), "XDG_CONFIG_HOME": str(folder / "config")}


async def test_commands_find_the_password_in_the_data_directory(
    tmp_path: Path, nats_server: NatsServer, own_streams: Broker
) -> None:
    environment = _project(tmp_path, nats_server)
    done = await runtime("", "dlq", "ls", folder=tmp_path, **environment)
    assert (done.code, done.out) == (0, "No dead letters.\n")
    (tmp_path / ".runtime" / "nats.password").unlink()
    done = await runtime("", "dlq", "ls", folder=tmp_path, **environment)
    assert done.code == 2
    assert "nats.password" in done.err


@pytest.mark.nats_cli
async def test_the_official_command_line_reaches_everything_by_its_contexts(
    tmp_path: Path, nats_server: NatsServer, nats_cli: Callable[..., str], own_streams: Broker
) -> None:
    environment = _project(tmp_path, nats_server)
    done = await runtime("", "nats-context", folder=tmp_path, **environment)
    assert done.code == 0, done.err
    assert nats_server.password not in done.out
    for context in (tmp_path / "config" / "nats" / "context").iterdir():
        assert context.stat().st_mode & 0o777 == 0o600

    def ask(*arguments: str) -> str:
        return nats_cli("", *arguments, XDG_CONFIG_HOME=environment["XDG_CONFIG_HOME"])

    commands: dict[str, tuple[Any, ...]] = {
        "runtime": ("--context", "runtime-system", "server", "list"),
        "rtt=": ("--context", "runtime-system", "server", "ping", "1"),
        "Version": ("--context", "runtime-system", "server", "info"),
        "JetStream Summary": ("--context", "runtime-system", "server", "report", "jetstream"),
        "DEAD_LETTERS": ("--context", "runtime", "stream", "report"),
        "Stream MAILBOX": ("--context", "runtime", "stream", "purge", "MAILBOX", "-f"),
    }
    for expected, command in commands.items():
        assert expected.lower() in (await asyncio.to_thread(ask, *command)).lower(), command


async def test_the_system_user_takes_no_part_in_messages(
    nats_server: NatsServer, anonymous: Client
) -> None:
    client = await nats.connect(
        nats_server.anonymous_url, user=SYSTEM_USER, password=nats_server.password
    )
    heard = await anonymous.subscribe("data.>")
    await anonymous.flush()
    await client.publish("data.system", b"")
    await client.flush()
    await anonymous.publish("data.anonymous", b"")
    assert (await heard.next_msg(10)).subject == "data.anonymous"
    await client.close()


async def test_a_context_without_an_embedded_server_is_refused(tmp_path: Path) -> None:
    done = await runtime("", "nats-context", folder=tmp_path)
    assert done.code == 2
    assert "there is no password of an embedded server" in done.err
    done = await runtime("nats://elsewhere", "nats-context", folder=tmp_path)
    assert done.code == 2
    assert "NATS_URL" in done.err


class Recorder:
    """An endpoint that records its requests."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def __call__(self, message: Message) -> Answer:
        self.asked.append(message.data)
        return Answer(b"done")


@pytest.mark.parametrize("way", ["pull", "push", "republish", "direct get"])
async def test_what_jetstream_delivers_to_an_endpoint_is_no_request(
    anonymous: Client, broker: Broker, way: str
) -> None:
    # JetStream delivers to subjects to which a client without a name may not publish.
    stream, subject, js = fresh("S"), f"management.{fresh('delete')}", anonymous.jetstream()
    recorder = Recorder()
    endpoint = MicroEndpoint("delete", subject, recorder)
    service = MicroService(broker, "test", "1.0.0", endpoints=[endpoint])
    await service.start()
    republish = RePublish(src=stream, dest=subject) if way == "republish" else None
    await js.add_stream(
        StreamConfig(name=stream, subjects=[stream], republish=republish, allow_direct=True)
    )
    if way == "push":
        push = ConsumerConfig(durable_name="c", deliver_subject=subject, deliver_group="q")
        await js.add_consumer(stream, push)
    await js.publish(stream, b"forged")
    if way == "pull":
        await js.add_consumer(stream, ConsumerConfig(durable_name="c"))
        await anonymous.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.c", b"", reply=subject)
    if way == "direct get":
        await anonymous.publish(f"$JS.API.DIRECT.GET.{stream}", b'{"seq":1}', reply=subject)
    await anonymous.flush()
    async with asyncio.timeout(60):
        while endpoint.counters.num_errors == 0:
            assert (await broker.request(subject, b"asked", timeout_s=30)).data == b"done"
    await service.stop()
    assert b"forged" not in recorder.asked


@pytest.mark.parametrize(
    "reply",
    [
        *("mailbox.ready.ingest", "$JS.API.STREAM.PURGE.X", "leases.x"),
        *("downlinks.acme.d1.commands.c1", "tenant.acme.device.d1.commands"),
    ],
)
async def test_an_endpoint_answers_to_no_subject_of_the_hosts(
    anonymous: Client, broker: Broker, reply: str
) -> None:
    subject, recorder = fresh("echo"), Recorder()
    service = MicroService(
        broker, "test", "1.0.0", endpoints=[MicroEndpoint("echo", subject, recorder)]
    )
    await service.start()
    await anonymous.publish(subject, b"forged", reply=reply)
    await anonymous.flush()
    assert (await broker.request(subject, b"asked", timeout_s=30)).data == b"done"
    await service.stop()
    assert recorder.asked == [b"asked"]
