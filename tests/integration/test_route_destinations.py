"""What single route types do beyond the suite of all: logins, TLS, hostile servers, odd rows."""

import asyncio
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiosmtpd.smtp import SMTP, AuthResult

from functions.domain.nats_credentials import public_key, read_seed
from functions.route_delivery import (
    Job,
    Receipt,
    email,
    mqtt_republish,
    nats_republish,
    postgresql,
)
from runtime import Context
from runtime.broker.connection import Broker
from runtime.context import Scope
from tests.support.certificates import contexts, self_signed
from tests.support.listener import Listener
from tests.support.mqtt import MqttSession
from tests.support.proxy import Proxy
from tests.support.route_types.mail import MailCounterpart
from tests.support.route_types.mqtt import MqttBroker, MqttCounterpart
from tests.support.route_types.nats import PASSWORD, USER, TenantNatsServer
from tests.support.route_types.postgres import PostgresCounterpart
from tests.support.servers import NatsServer, PostgresServer, remove, run_apart

LOOPBACK: dict[str, Any] = {"allowed_networks": "127.0.0.0/8, ::1/128", "timeout_s": 3.0}
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server(Listener):
    """Talks as a test tells it."""

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self._talk = talk

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


def job(payload: Any = None, number: int = 1) -> Job:
    return Job(
        job_id=f"T-{number}-1-r",
        route_id="r",
        tenant_id="acme",
        device_id="dev1",
        topic="tenant/acme/device/dev1/telemetry",
        msg_type="telemetry",
        payload={"metrics": {"temp": 21.5}} if payload is None else payload,
        stored_at=datetime(2026, 8, 1, tzinfo=UTC),
    )


@asynccontextmanager
async def sender_of(module: Any, **settings: Any) -> AsyncIterator[Any]:
    """Makes attempts of a type: `await attempt(config, job)`."""
    context = SimpleNamespace(settings=module.Settings(**settings))
    context.state = await module._open(context)

    async def attempt(config: dict[str, Any], given: Job) -> Receipt:
        destination = module.Destination.model_validate(config)
        receipt: Receipt = await module.send(given, destination, context)
        return receipt

    try:
        yield attempt
    finally:
        await context.state.close()


async def one_attempt(module: Any, config: dict[str, Any], given: Job | None = None) -> Receipt:
    async with sender_of(module, **LOOPBACK) as attempt:
        receipt: Receipt = await attempt(config, given or job())
        return receipt


# NATS


@pytest.fixture(scope="module")
def theirs() -> Iterator[TenantNatsServer]:
    directory = Path(tempfile.mkdtemp(prefix="runtime-test-theirs-"))
    server = TenantNatsServer(directory)
    yield server
    server.stop()
    remove(directory)


def nats_config(port: int, **more: Any) -> dict[str, Any]:
    login = {"user": USER, "password": PASSWORD}
    return {"host": "localhost", "port": port, "subject": "out.{device_id}"} | login | more


async def test_a_subscriber_of_the_account_gets_the_message_and_one_of_another_does_not(
    theirs: TenantNatsServer,
) -> None:
    inside, outside = [
        await Broker.connect(f"nats://{login}@127.0.0.1:{theirs.port}", name="subscriber")
        for login in (f"{USER}:{PASSWORD}", "other:other")
    ]
    came: asyncio.Queue[Any] = asyncio.Queue()
    leaked: list[Any] = []
    await inside.subscribe("core.>", came.put_nowait)
    await outside.subscribe(">", leaked.append)
    await inside.flush()
    await outside.flush()
    config = nats_config(theirs.port, subject="core.{device_id}", jetstream=False, body="message")
    assert (await one_attempt(nats_republish, config)).outcome == "delivered"
    message = await asyncio.wait_for(came.get(), 60)
    await outside.flush()
    assert (message.subject, message.headers["Nats-Msg-Id"]) == ("core.dev1", "T-1-1-r")
    assert b'"device_id":"dev1"' in message.data
    assert leaked == []
    await inside.close()
    await outside.close()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"password": "wrong"}, "AUTHENTICATION_FAILED"),
        ({"user": None, "password": None}, "AUTHENTICATION_FAILED"),
        ({"subject": "nowhere.x"}, "NO_STREAM"),
        ({"subject": "closed.x", "jetstream": False}, "NOT_PERMITTED"),
        ({"tls": True}, "TLS_FAILED"),
    ],
)
async def test_a_nats_server_that_refuses_is_tried_again(
    theirs: TenantNatsServer, more: dict[str, Any], code: str
) -> None:
    receipt = await one_attempt(nats_republish, nats_config(theirs.port, **more))
    assert (receipt.outcome, receipt.code) == ("failed", code)


SEED = "SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY"
"""The seed of the nkeys documentation's example user."""


class NkeyServer(TenantNatsServer):
    """Lets in one nkey, under TLS alone."""

    pem: Path

    def configuration(self) -> str:
        return f"""
port: -1
ports_file_dir: "{self.directory / "ports"}"
log_file: "{self.directory / "nats-server.log"}"
http: "127.0.0.1:-1"
server_name: "nkeys"
jetstream {{ store_dir: "{self.directory / "data"}" }}
mqtt {{ host: "127.0.0.1", port: -1 }}
tls {{ cert_file: "{self.pem}", key_file: "{self.pem}" }}
authorization {{ users: [{{ nkey: {public_key(read_seed(SEED))} }}] }}
"""


async def test_a_key_logs_in_and_the_certificate_is_checked_against_the_routes_authority(
    server_directory: Path,
) -> None:
    NkeyServer.pem = self_signed("localhost", server_directory)
    certificate = NkeyServer.pem.read_text().partition("-----BEGIN CERT")
    server = NkeyServer(server_directory / "nats")
    try:
        config = {"host": "localhost", "port": server.port, "subject": "a", "jetstream": False}
        key = {"nkey_seed": SEED}
        ca: dict[str, Any] = {"authorities": certificate[1] + certificate[2]}
        ca["tls"] = True
        right = await one_attempt(nats_republish, config | key | ca)
        untrusted = await one_attempt(nats_republish, config | key)
        unknown = await one_attempt(nats_republish, config | ca)
        named = await one_attempt(nats_republish, config | key | ca | {"host": "127.0.0.1"})
    finally:
        server.stop()
    assert right.outcome == "delivered"
    # The server asks for TLS, so the key is not sent without it.
    assert [untrusted.code, unknown.code, named.code] == [
        "TLS_FAILED",
        "AUTHENTICATION_FAILED",
        "TLS_FAILED",
    ]


INFO = b'INFO {"max_payload":1048576,"headers":true}\r\n'


@pytest.mark.parametrize(
    ("greeting", "after", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", b"", "PROTOCOL_ERROR"),
        (b"INFO nothing\r\n", b"", "PROTOCOL_ERROR"),
        (b'INFO {"max_payload":"x"}\r\n', b"", "PROTOCOL_ERROR"),
        (b'INFO {"max_payload":1e999}\r\n', b"", "PROTOCOL_ERROR"),
        (b"INFO " + b"[" * 30_000 + b"\r\n", b"", "PROTOCOL_ERROR"),
        (b"x" * 100_000, b"", "CONNECTION_LOST"),
        (INFO, b"PING\r\n" * 1000, "PROTOCOL_ERROR"),
        (INFO, b"MSG a 1 2000000000\r\n", "PROTOCOL_ERROR"),
        (INFO, b"HMSG a 1 -5 3\r\n", "PROTOCOL_ERROR"),
        (INFO, b"-ERR 'Permissions Violation for Publish'\r\n", "NOT_PERMITTED"),
        (INFO, b"WHATEVER\r\n", "PROTOCOL_ERROR"),
    ],
)
async def test_a_server_that_does_not_speak_nats_ends_the_attempt_at_once(
    greeting: bytes, after: bytes, code: str
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.readuntil(b"PING\r\n")
        writer.write(after)
        await reader.read()

    async with Server(talk) as server:
        receipt = await one_attempt(nats_republish, nats_config(server.port))
    assert (receipt.outcome, receipt.code) == ("failed", code)


async def test_a_connection_that_was_closed_while_idle_costs_no_attempt(
    theirs: TenantNatsServer,
) -> None:
    config = nats_config(theirs.port, subject="core.x", jetstream=False)
    async with Proxy(theirs.port) as proxy, sender_of(nats_republish, **LOOPBACK) as attempt:
        for number in range(3):
            assert (await attempt(config | {"port": proxy.port}, job())).outcome == "delivered"
            if number == 1:
                proxy.reset()
        assert proxy.connections == 2


# MQTT


async def test_a_retained_message_waits_for_later_subscribers(nats_server: NatsServer) -> None:
    async with MqttCounterpart(nats_server) as receiver:
        config = receiver.config() | {"topic": "tenant/kept/{device_id}", "retain": True}
        assert (await one_attempt(mqtt_republish, config)).outcome == "delivered"

    def read_it() -> Any:
        with MqttSession(
            nats_server.mqtt_port, nats_server.mqtt_user, nats_server.mqtt_password
        ) as later:
            later.subscribe("tenant/kept/#")
            return later.received.get(timeout=60)

    message = await asyncio.to_thread(read_it)
    assert (message.topic, message.retain) == ("tenant/kept/dev1", True)


async def test_version_5_carries_the_jobs_id_and_the_login() -> None:
    async with MqttBroker() as broker:
        config = {"host": "localhost", "port": broker.port, "username": "u", "password": "p4ss"}
        assert (await one_attempt(mqtt_republish, config)).outcome == "delivered"
    (connect, login), (publish, message) = broker.packets
    assert (connect, login[:7]) == (0x10, b"\x00\x04MQTT\x05")
    assert login.endswith(b"\x00\x01u\x00\x04p4ss")
    assert publish == 0x32
    assert b"job_id\x00\x07T-1-1-r" in message
    assert message.endswith(b'{"metrics":{"temp":21.5}}')


async def test_the_certificates_of_broker_and_client_are_checked(tmp_path: Path) -> None:
    pem = self_signed("localhost", tmp_path)
    served, _ = contexts(pem)
    served.verify_mode = ssl.CERT_REQUIRED
    served.load_verify_locations(pem)
    ca = "-----BEGIN CERT" + pem.read_text().partition("-----BEGIN CERT")[2]
    broker = MqttBroker()
    broker._tls = served
    async with broker:
        config = {"host": "localhost", "port": broker.port, "tls": True}
        unproven = await one_attempt(mqtt_republish, config | {"authorities": ca})
        config["client_certificate"] = pem.read_text()
        right = await one_attempt(mqtt_republish, config | {"authorities": ca})
        untrusted = await one_attempt(mqtt_republish, config)
        named = await one_attempt(mqtt_republish, config | {"authorities": ca, "host": "127.0.0.1"})
    assert [right.code, untrusted.code, named.code] == ["", "TLS_FAILED", "TLS_FAILED"]
    # In TLS 1.3 the broker refuses after the handshake, as the client sees it.
    assert unproven.code in {"CONNECTION_LOST", "TLS_FAILED"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"\x20\x02\x00\x05", "AUTHENTICATION_FAILED"),
        (b"\x20\x03\x00\x87\x00", "AUTHENTICATION_FAILED"),
        (b"\x20\x03\x00\x97\x00", "BROKER_BUSY"),
        (b"\x20\x03\x00\x80\x00", "BROKER_REFUSED"),
        (b"\xe0\x01\x8b", "BROKER_REFUSED"),
        (b"\x20\x00", "PROTOCOL_ERROR"),
        (b"\x30\xff\xff\xff\x7f", "PROTOCOL_ERROR"),
        (b"\x30\xff\xff\xff\xff\xff", "PROTOCOL_ERROR"),
        (b"\xd0\x00" * 1000, "PROTOCOL_ERROR"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9, "PROTOCOL_ERROR"),
    ],
)
async def test_a_broker_that_refuses_or_does_not_speak_mqtt_ends_the_attempt_at_once(
    answer: bytes, code: str
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await reader.read()

    async with Server(talk) as server:
        receipt = await one_attempt(mqtt_republish, {"host": "localhost", "port": server.port})
    assert (receipt.outcome, receipt.code) == ("failed", code)


async def test_confirmations_of_other_messages_without_end_end_the_attempt() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x02\x00\x00")
        await reader.read(1000)
        while True:
            writer.write(b"\x40\x02\xff\xff" * 1000)
            await writer.drain()

    async with Server(talk) as server:
        config = {"host": "localhost", "port": server.port, "version": "3.1.1", "topic": "a"}
        receipt = await one_attempt(mqtt_republish, config)
    assert (receipt.outcome, receipt.code) == ("failed", "PROTOCOL_ERROR")


@pytest.mark.parametrize("topic", ["{payload.none}", "{payload.long}", "x" * 1024 + "{device_id}"])
async def test_a_topic_that_no_broker_takes_is_refused_before_connecting(topic: str) -> None:
    given = job({"long": "\u20ac" * 900})
    receipt = await one_attempt(mqtt_republish, {"host": "localhost", "topic": topic[:1024]}, given)
    assert (receipt.outcome, receipt.code) == (
        ("refused", "TOPIC_NOT_ALLOWED") if "payload" in topic else ("failed", "CONNECTION_FAILED")
    )


# This host's own server


async def test_a_tenants_subject_of_this_host_stores_a_job_once(broker: Broker) -> None:
    stream = {"name": "REPUBLISHED", "subjects": ["republish.>"], "storage": "memory"}
    await broker.api("STREAM.CREATE.REPUBLISHED", stream)
    settings = nats_republish.Settings(own_subjects="republish.{tenant_id}.>")
    context: Context[Any] = Context(Scope("f", settings, broker, {}, structlog.get_logger()))
    destination = nats_republish.Destination()
    for _ in range(2):
        receipt = await nats_republish.send(job(), destination, context)
        assert receipt.outcome == "delivered"
    told = await broker.api("STREAM.INFO.REPUBLISHED", {"subjects_filter": ">"})
    assert told["state"]["subjects"] == {"republish.acme.dev1.telemetry": 1}
    await broker.api("STREAM.DELETE.REPUBLISHED")


async def test_a_device_of_this_host_gets_what_a_route_sends_to_it(
    broker: Broker, nats_server: NatsServer
) -> None:
    context: Context[Any] = Context(
        Scope("f", mqtt_republish.Settings(), broker, {}, structlog.get_logger())
    )
    destination = mqtt_republish.Destination(topic="tenant/acme/device/{device_id}/routed")
    device = MqttSession(nats_server.mqtt_port, nats_server.mqtt_user, nats_server.mqtt_password)
    await asyncio.to_thread(device.__enter__)
    await asyncio.to_thread(device.subscribe, "tenant/acme/device/dev1/#")
    assert (await mqtt_republish.send(job(), destination, context)).outcome == "delivered"
    message = await asyncio.to_thread(device.received.get, True, 10)
    await asyncio.to_thread(device.__exit__, None, None, None)
    assert message.topic == "tenant/acme/device/dev1/routed"
    assert message.payload == b'{"metrics":{"temp":21.5}}'


# PostgreSQL


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    run_apart(lambda: postgres_server.make_database("route_destinations"))
    yield "route_destinations"
    run_apart(lambda: postgres_server.administer("DROP DATABASE route_destinations WITH (FORCE)"))


@pytest.fixture
async def table(
    postgres_server: PostgresServer, database: str
) -> AsyncIterator[PostgresCounterpart]:
    async with PostgresCounterpart(postgres_server, database) as receiver:
        yield receiver


async def test_postgresql_converts_each_value_and_what_is_absent_is_null(
    table: PostgresCounterpart,
) -> None:
    columns = {"temp": "payload.temp", "All of it": "payload.deep", "at": "payload.at"}
    config = table.config() | {"columns": columns | {"device": "payload.number"}}
    given = job({"temp": "21.5", "number": 7, "at": "2026-08-01T12:00:00+02:00", "deep": [1, "a"]})
    assert (await one_attempt(postgresql, config, given)).outcome == "delivered"
    assert (await one_attempt(postgresql, config, job({"number": 8}, 2))).outcome == "delivered"
    rows = await table.admin.fetch('SELECT * FROM "Their ""rows" ORDER BY device')
    assert [tuple(row) for row in rows] == [
        ("T-1-1-r", 21.5, '[1, "a"]', datetime(2026, 8, 1, 10, tzinfo=UTC), "7"),
        ("T-2-1-r", None, None, None, "8"),
    ]


@pytest.mark.parametrize(
    ("more", "outcome", "code"),
    [
        ({"password": "wrong"}, "failed", "AUTHENTICATION_FAILED"),
        ({"database": "none"}, "failed", "DATABASE_NOT_FOUND"),
        ({"table": "none"}, "failed", "TABLE_NOT_FOUND"),
        ({"table_schema": "none"}, "failed", "TABLE_NOT_FOUND"),
        ({"columns": {"none": "payload"}}, "failed", "COLUMN_NOT_FOUND"),
        ({"id_column": "device", "columns": {"the id": "job_id"}}, "failed", "NO_UNIQUE_INDEX"),
        (
            {
                "table_schema": "pg_catalog",
                "table": "pg_am",
                "columns": {"amname": "job_id"},
                "id_column": None,
            },
            "failed",
            "NOT_PERMITTED",
        ),
        ({"tls": True}, "failed", "TLS_FAILED"),
        ({"columns": {"temp": "device_id"}}, "refused", "ROW_NOT_ACCEPTED"),
        ({"columns": {"temp": "payload.x"}}, "refused", "ROW_NOT_ACCEPTED"),
    ],
)
async def test_what_a_tenant_can_mend_is_tried_again_and_a_row_that_does_not_fit_is_not(
    table: PostgresCounterpart, more: dict[str, Any], outcome: str, code: str
) -> None:
    receipt = await one_attempt(postgresql, table.config() | more)
    assert (receipt.outcome, receipt.code) == (outcome, code)
    assert await table.arrived(0) == []


async def test_concurrent_jobs_make_one_row_each_over_few_connections(
    table: PostgresCounterpart,
) -> None:
    async with sender_of(postgresql, **LOOPBACK) as attempt:
        for _ in range(2):
            jobs = [attempt(table.config(), job(number=number)) for number in range(4)]
            assert {receipt.outcome for receipt in await asyncio.gather(*jobs)} == {"delivered"}
        connections = table.proxy.connections
    assert sorted(each.identity for each in await table.arrived(4)) == [
        f"T-{number}-1-r" for number in range(4)
    ]
    assert connections == 4


async def test_the_certificate_of_a_postgresql_server_is_checked(
    table: PostgresCounterpart, tmp_path: Path
) -> None:
    pem = self_signed("localhost", tmp_path)
    served, _ = contexts(pem)
    ca = "-----BEGIN CERT" + pem.read_text().partition("-----BEGIN CERT")[2]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        await writer.drain()
        await writer.start_tls(served)
        inner, outer = await asyncio.open_connection("127.0.0.1", table.proxy.port)
        there = asyncio.create_task(copy(reader, outer))
        try:
            await copy(inner, writer)
        finally:
            there.cancel()
            outer.close()

    async with Server(talk) as server:
        config = table.config() | {"port": server.port, "tls": True}
        right = await one_attempt(postgresql, config | {"authorities": ca})
        untrusted = await one_attempt(postgresql, config)
        named = await one_attempt(postgresql, config | {"authorities": ca, "host": "127.0.0.1"})
    assert [right.code, untrusted.code, named.code] == ["", "TLS_FAILED", "TLS_FAILED"]


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)


async def test_a_server_that_floods_the_client_is_cut_off(table: PostgresCounterpart) -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.read(100)
        writer.write(b"R\x7f\xff\xff\xff")  # An answer of 2 GB begins.
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent += 65_536

    async with Server(talk) as server:
        receipt = await one_attempt(postgresql, table.config() | {"port": server.port})
    assert (receipt.outcome, receipt.code) == ("failed", "CONNECTION_LOST")
    assert sent < 20_000_000  # What fits into the buffers of the operating system.


@pytest.mark.parametrize("sent", [b"\0" * 100, b"S\0\0\0\3", b"R\xff\xff\xff\xff" * 20])
@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_message_shorter_than_its_own_length_does_not_stop_the_event_loop(
    table: PostgresCounterpart, tmp_path: Path, sent: bytes, is_tls: bool
) -> None:
    pem = self_signed("localhost", tmp_path)
    served, _ = contexts(pem)
    ca = "-----BEGIN CERT" + pem.read_text().partition("-----BEGIN CERT")[2]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if is_tls:
            await reader.readexactly(8)
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(served)
        await reader.read(100)
        for byte in sent:  # In pieces, which the client has to put together.
            writer.write(bytes([byte]))
            await writer.drain()
        await reader.read()

    async with Server(talk) as server:
        own = {"tls": True, "authorities": ca} if is_tls else {}
        receipt = await one_attempt(postgresql, table.config() | {"port": server.port} | own)
    assert (receipt.outcome, receipt.code) == ("failed", "CONNECTION_LOST")


async def test_bytes_before_the_tls_handshake_are_not_taken_for_a_confirmation(
    tmp_path: Path,
) -> None:
    pem = self_signed("localhost", tmp_path)
    served, _ = contexts(pem)
    ca = "-----BEGIN CERT" + pem.read_text().partition("-----BEGIN CERT")[2]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # As somebody between both would send it, who cannot read or write under TLS.
        writer.write(b'INFO {"max_payload":1000,"headers":true,"tls_required":true}\r\n')
        writer.write(b"PONG\r\nPONG\r\n")
        await writer.drain()
        await writer.start_tls(served)
        await reader.read()

    async with Server(talk) as server:
        config = {"host": "localhost", "port": server.port, "tls": True, "authorities": ca}
        receipt = await one_attempt(nats_republish, config | {"subject": "a", "jetstream": False})
    assert (receipt.outcome, receipt.code) == ("failed", "TLS_FAILED")


# Mail


async def test_a_recipient_that_is_refused_beside_others_is_named_and_the_job_is_done() -> None:
    async with MailCounterpart() as receiver:
        receiver.refused_recipients["b@example.org"] = "550 no such user"
        async with sender_of(email, **receiver.server_settings()) as attempt:
            receipt = await attempt(receiver.config(), job())
            receiver.refused_recipients["a@example.org"] = "550 no such user"
            none = await attempt(receiver.config(), job())
            receiver.refused_recipients["a@example.org"] = "451 later"
            later = await attempt(receiver.config(), job())
    assert (receipt.outcome, receipt.excerpt) == (
        "delivered",
        "not accepted: b@example.org: 550 no such user",
    )
    assert (none.outcome, none.code) == ("refused", "RECIPIENTS_REFUSED")
    assert (later.outcome, later.code) == ("failed", "RECIPIENTS_REFUSED")
    assert len(receiver.mails) == 1


async def test_a_value_with_line_ends_begins_no_header() -> None:
    async with MailCounterpart() as receiver:
        config = receiver.config() | {"subject": "Alert {payload.name}", "text": "{payload.name}"}
        async with sender_of(email, **receiver.server_settings()) as attempt:
            await attempt(config, job({"name": "a\r\nBcc: victim@example.org\r\n\r\n\u00fcber"}))
        [arrived] = await receiver.arrived(1)
    head, _, body = receiver.last().partition("\r\n\r\n")
    assert "Bcc" not in [line.partition(":")[0] for line in head.splitlines()]
    assert receiver.mails[0].rcpt_tos == ["a@example.org", "b@example.org"]
    assert "Bcc: victim" in arrived.text
    assert body


async def test_mail_goes_under_tls_with_a_login(tmp_path: Path, monkeypatch: Any) -> None:
    pem = self_signed("localhost", tmp_path)
    served, _ = contexts(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    receiver = MailCounterpart()
    logins: list[Any] = []

    def authenticate(*arguments: Any) -> AuthResult:
        logins.append(arguments[-1])
        return AuthResult(success=arguments[-1].password == b"smtp-p4ssword", handled=False)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(
            receiver,
            hostname="mail.test",
            loop=loop,
            tls_context=served,
            require_starttls=True,
            authenticator=authenticate,
            auth_required=True,
        ),
        "127.0.0.1",
        0,
    )
    base = {
        "host": "localhost",
        "port": server.sockets[0].getsockname()[1],
        "sender": "alerts@example.com",
        "username": "alerts",
    }
    try:
        async with sender_of(email, **base, password="smtp-p4ssword") as attempt:
            right = await attempt(receiver.config(), job())
        async with sender_of(email, **base, password="wrong") as attempt:
            wrong = await attempt(receiver.config(), job())
    finally:
        server.close()
    assert right.outcome == "delivered"
    assert (wrong.outcome, wrong.code) == ("failed", "AUTHENTICATION_FAILED")
    assert len(receiver.mails) == 1
    assert logins


async def test_without_a_mail_server_the_attempt_fails_and_says_so() -> None:
    async with sender_of(email) as attempt:
        receipt = await attempt({"to": ["a@example.org"]}, job())
    assert (receipt.outcome, receipt.code) == ("failed", "NO_MAIL_SERVER")


async def test_a_name_without_an_address_counts_for_the_origin() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        settings = LOOPBACK | {"nameservers": f"127.0.0.1:{silent.getsockname()[1]}"}
        async with sender_of(nats_republish, **settings | {"timeout_s": 0.3}) as attempt:
            receipt = await attempt(nats_config(4222, host="no-such-name.test"), job())
    assert (receipt.outcome, receipt.health) == ("failed", "unreachable")
