"""Devices' own credentials at nats-server's MQTT listener."""

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from functions.domain.topics import SHADOW_ANSWERS, downlink_subject, shadow_kind
from runtime.broker.connection import Broker
from runtime.host import Host
from runtime.message import Message
from runtime.resource.postgres import open_pool
from tests.support.device_auth import SUBJECT, serving
from tests.support.host import eventually
from tests.support.ingest import TOKEN, register
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer
from tests.support.tls_server import TlsServer, add_certificate

REFUSED = "Not authorized"
# What nats-server itself says to a client id with a dot or a wildcard.
UNREADABLE_ID = "Client identifier not valid"


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[Any]:
    opened = await open_pool(postgres_dsn, max_size=2)
    for device in ("dev1", "dev2", "d.1"):
        await register(opened, device=device)
    yield opened
    await opened.close()


@pytest.fixture
async def host(nats_server: NatsServer, postgres_dsn: str, pool: Any) -> AsyncIterator[Host]:
    async with serving(nats_server, postgres_dsn) as running:
        yield running


@pytest.fixture
def sessions() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def connect(
    sessions: ExitStack,
    server: NatsServer,
    device: str = "dev1",
    token: str | None = TOKEN,
    *,
    user: str | None = None,
    client_id: str | None = None,
) -> MqttSession:
    name = f"test/{device}"
    session = MqttSession(
        server.mqtt_port,
        name if user is None else user,
        token,
        client_id=name.replace(".", "//") if client_id is None else client_id,
    )
    # The answer to CONNECT comes from this loop.
    return await asyncio.to_thread(sessions.enter_context, session)


async def heard(messages: "asyncio.Queue[Message]") -> str:
    message = await asyncio.wait_for(messages.get(), 60)
    return f"{message.subject} {message.data.decode()}"


async def test_a_device_comes_in_with_its_token_and_sends_what_devices_send(
    host: Host, nats_server: NatsServer, broker: Broker, sessions: ExitStack
) -> None:
    messages: asyncio.Queue[Message] = asyncio.Queue()
    for subject in ("telemetry.>", "shadow.>", "commands.>"):
        await broker.subscribe(subject, messages.put_nowait)
    session = await connect(sessions, nats_server, "d.1")
    assert session.connected == "Success"

    own = "tenant/test/device/d.1"
    for kind in ("telemetry", "heartbeat", "event", "shadow/reported", "commands/ack"):
        await asyncio.to_thread(session.publish, f"{own}/{kind}", kind)

    assert {await heard(messages) for _ in range(5)} == {
        "telemetry.test.d//1 telemetry",
        "telemetry.test.d//1.heartbeat heartbeat",
        "telemetry.test.d//1.event event",
        "shadow.test.d//1.reported shadow/reported",
        "commands.test.d//1.ack commands/ack",
    }


REQUESTS = ("reported", "update", "get", "delete")


async def test_a_device_asks_of_its_own_shadows_and_nothing_else(
    host: Host, nats_server: NatsServer, broker: Broker, sessions: ExitStack
) -> None:
    messages: asyncio.Queue[Message] = asyncio.Queue()
    for family in ("shadow", "tenant"):
        await broker.subscribe(f"{family}.>", messages.put_nowait)
    session = await connect(sessions, nats_server, "d.1")
    forms = ("shadow", "shadow/name/n:1")
    answers = [*sorted(SHADOW_ANSWERS), "desired", "update/delta", "update/accepted/x", "other"]
    # What the platform answers, and everything of another device or tenant.
    forbidden = [f"tenant/test/device/d.1/{form}/{answer}" for form in forms for answer in answers]
    forbidden += [
        f"tenant/{other}/{form}/{request}"
        for other in ("test/device/dev1", "test/device/d.10", "other/device/d.1")
        for form in forms
        for request in REQUESTS
    ]
    forbidden += ["shadow/test/dev1/get", "shadow/test/dev1/name/n/get", "shadow/test"]
    for topic in forbidden:
        await asyncio.to_thread(session.publish, topic, "forged")
    for form in forms:
        for request in REQUESTS:
            topic = f"tenant/test/device/d.1/{form}/{request}"
            await asyncio.to_thread(session.publish, topic, request)

    assert [await heard(messages) for _ in range(2 * len(REQUESTS))] == [
        f"shadow.test.d//1.{form}{request} {request}"
        for form in ("", "name.n:1.")
        for request in REQUESTS
    ]


async def test_a_device_hears_the_answers_about_its_own_shadows(
    host: Host, nats_server: NatsServer, broker: Broker, sessions: ExitStack
) -> None:
    session = await connect(sessions, nats_server, "d.1")
    for topic in ("shadow/#", "shadow/+/accepted", "shadow/name/+/delta"):
        answer = await asyncio.to_thread(session.subscribe, f"tenant/test/device/d.1/{topic}")
        assert answer == "Granted QoS 1"
    foreign = await asyncio.to_thread(session.subscribe, "tenant/test/device/dev1/shadow/#")
    assert not foreign.startswith("Granted")
    for device in ("dev1", "d.1"):
        subject = downlink_subject("test", device, shadow_kind("n", "get/accepted"))
        await broker.publish_core(subject, device.encode())

    message = await asyncio.to_thread(session.received.get, timeout=60)

    assert message.topic == "tenant/test/device/d.1/shadow/name/n/get/accepted"
    assert message.payload == b"d.1"


async def test_a_device_hears_its_own_topics_and_nobody_else_s(
    host: Host, nats_server: NatsServer, broker: Broker, sessions: ExitStack
) -> None:
    session = await connect(sessions, nats_server)
    answers = {
        topic: await asyncio.to_thread(session.subscribe, topic)
        for topic in (
            "tenant/test/device/dev1/#",
            "tenant/test/device/dev1/commands",
            "tenant/test/device/dev2/commands",
            "tenant/test/device/+/commands",
            "tenant/test/#",
            "tenant/other/device/dev1/#",
            "#",
            "+/+/+/+/+",
            "$MQTT/sub/#",
            "$MQTT/deliver/pubrel/#",
            "mailbox/#",
            "telemetry/test/dev1",
            "$SYS/REQ/USER/AUTH",
            "_INBOX/#",
        )
    }
    assert [topic for topic, answer in answers.items() if answer == "Granted QoS 1"] == [
        "tenant/test/device/dev1/#",
        "tenant/test/device/dev1/commands",
    ]
    await broker.publish_core("tenant.test.device.dev2.commands", b"for another")
    await broker.publish_core("tenant.test.device.dev1.commands", b"for me")

    message = await asyncio.to_thread(session.received.get, timeout=60)

    assert (message.topic, message.payload) == ("tenant/test/device/dev1/commands", b"for me")


async def test_a_device_sends_for_nobody_else_and_gives_no_orders(
    host: Host, nats_server: NatsServer, broker: Broker, sessions: ExitStack
) -> None:
    messages: asyncio.Queue[Message] = asyncio.Queue()
    families = ("tenant", "telemetry", "shadow", "commands", "mailbox", "$JS.API.STREAM.PURGE")
    for family in families:
        await broker.subscribe(f"{family}.>", messages.put_nowait)
    listener = await connect(sessions, nats_server, "dev2")
    await asyncio.to_thread(listener.subscribe, "tenant/test/device/dev2/#")
    session = await connect(sessions, nats_server)
    for topic in (
        "tenant/test/device/dev2/telemetry",
        "tenant/test/device/dev2/commands",
        "tenant/test/device/dev1/commands",
        "tenant/test/device/dev1/shadow",
        "tenant/test/device/dev1/shadow/desired",
        "tenant/test/device/dev1/shadow/delta",
        "tenant/test/device/dev1/routed",
        "tenant/other/device/dev1/telemetry",
        "telemetry/test",
        "telemetry/test/dev2",
        "mailbox/ready/x",
        "$JS/API/STREAM/PURGE/TELEMETRY",
    ):
        for retain in (False, True):
            await asyncio.to_thread(session.publish, topic, "forged", retain=retain)
    await asyncio.to_thread(session.publish, "tenant/test/device/dev1/telemetry", "last")

    assert await heard(messages) == "telemetry.test.dev1 last"
    assert listener.received.empty()
    retained = await broker.api("STREAM.INFO.$MQTT_rmsgs")
    assert retained["state"]["messages"] == 0


@pytest.mark.parametrize(
    "claim",
    [
        {"token": "wrong"},
        {"token": ""},
        {"token": None},
        {"token": "x" * 257},
        {"device": "nobody"},
        {"client_id": "dev1"},
        {"client_id": "test/dev2"},
        {"client_id": "test/dev10"},
        {"client_id": "test/dev1//1"},
        {"client_id": "test/dev1/"},
        {"client_id": "test/dev1/a"},
        {"client_id": "test/dev1/10"},
        {"client_id": "test/dev1/1/1"},
        {"client_id": ""},
        {"user": "dev1"},
        {"user": "test"},
        {"user": "test/dev1/more"},
        {"user": "test/*", "client_id": "test/*"},
        {"user": "test/>", "client_id": "test/>"},
        {"user": "*/dev1", "client_id": "*/dev1"},
        {"user": "test/..", "client_id": "test/.."},
        {"user": "test/é", "client_id": "test/é"},
        {"user": "/", "client_id": "/"},
        {"user": "runtime", "client_id": "runtime"},
        {"user": "x" * 60_000, "client_id": "x" * 60_000},
    ],
    ids=str,
)
async def test_whoever_is_not_the_device_stays_outside(
    host: Host, nats_server: NatsServer, sessions: ExitStack, claim: dict[str, Any]
) -> None:
    session = await connect(sessions, nats_server, **claim)

    assert session.connected in {REFUSED, UNREADABLE_ID}


async def test_two_clients_of_one_device_have_client_ids_of_their_own(
    host: Host, nats_server: NatsServer, sessions: ExitStack
) -> None:
    first = await connect(sessions, nats_server, client_id="test/dev1/1")
    second = await connect(sessions, nats_server, client_id="test/dev1/2")

    assert (first.connected, second.connected) == ("Success", "Success")
    assert not first.ended.is_set()


ENDINGS = {
    "revoked": "UPDATE device_registry SET status = 'REVOKED' WHERE device_id = 'dev1'",
    "new token": "UPDATE device_registry SET provision_token_hash = sha256('another')"
    " WHERE device_id = 'dev1'",
    "deleted": "DELETE FROM device_registry WHERE device_id = 'dev1'",
    "tenant being erased": "UPDATE tenants SET status = 'ERASING' WHERE tenant_id = 'test'",
    "tenant suspended": "UPDATE tenants SET status = 'SUSPENDED' WHERE tenant_id = 'test'",
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_session_ends_within_moments_when_its_proof_no_longer_counts(
    host: Host, nats_server: NatsServer, pool: Any, sessions: ExitStack, ending: str
) -> None:
    session = await connect(sessions, nats_server)
    of_another = await connect(sessions, nats_server, "dev2")
    await pool.execute("UPDATE device_registry SET metadata = '{\"a\": 1}'")

    began_s = asyncio.get_running_loop().time()
    await pool.execute(ENDINGS[ending])
    assert await asyncio.to_thread(session.ended.wait, 60)
    took_s = asyncio.get_running_loop().time() - began_s

    assert took_s < 10
    again = await connect(sessions, nats_server)
    assert again.connected == REFUSED
    if not ending.startswith("tenant"):
        assert not of_another.ended.is_set()


async def test_a_session_ends_within_a_second_of_a_revocation(
    host: Host, nats_server: NatsServer, pool: Any, sessions: ExitStack
) -> None:
    took_s: list[float] = []
    for _ in range(3):
        session = await connect(sessions, nats_server)
        assert session.connected == "Success"
        began_s = asyncio.get_running_loop().time()
        await pool.execute(ENDINGS["revoked"])
        assert await asyncio.to_thread(session.ended.wait, 60)
        took_s.append(asyncio.get_running_loop().time() - began_s)
        await pool.execute("UPDATE device_registry SET status = 'ACTIVE'")

    # The best of three: whatever else stalls the machine is not in all of them.
    assert min(took_s) < 1, took_s


async def test_sessions_of_a_replaced_token_end_with_its_overlap(
    nats_server: NatsServer, postgres_dsn: str, pool: Any, sessions: ExitStack
) -> None:
    async with serving(nats_server, postgres_dsn, sweep_s=1):
        before = await connect(sessions, nats_server)
        await pool.execute(
            "UPDATE device_registry SET provision_token_hash = sha256('another'),"
            " previous_token_hash = provision_token_hash,"
            " previous_token_until = now() + interval '5 seconds' WHERE device_id = 'dev1'"
        )
        within = await connect(sessions, nats_server, client_id="test/dev1/1")
        newer = await connect(sessions, nats_server, token="another", client_id="test/dev1/2")
        assert [each.connected for each in (before, within, newer)] == ["Success"] * 3
        assert not before.ended.is_set()

        for session in (before, within):
            assert await asyncio.to_thread(session.ended.wait, 60)

        again = await connect(sessions, nats_server, client_id="test/dev1/3")
        assert again.connected == REFUSED
        newest = await connect(sessions, nats_server, token="another", client_id="test/dev1/4")
        assert newest.connected == "Success"


async def test_a_change_that_nobody_heard_ends_a_session_at_the_next_look(
    nats_server: NatsServer, postgres_dsn: str, pool: Any, sessions: ExitStack
) -> None:
    async with serving(nats_server, postgres_dsn, sweep_s=1):
        session = await connect(sessions, nats_server)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "ALTER TABLE device_registry DISABLE TRIGGER device_registry_changed"
            )
            await connection.execute("UPDATE device_registry SET status = 'REVOKED'")

        assert await asyncio.to_thread(session.ended.wait, 60)


async def test_changes_of_others_do_not_put_off_the_look_at_all_sessions(
    nats_server: NatsServer, postgres_dsn: str, pool: Any, sessions: ExitStack
) -> None:
    async with serving(nats_server, postgres_dsn, sweep_s=2):
        session = await connect(sessions, nats_server)
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(
                "ALTER TABLE device_registry DISABLE TRIGGER device_registry_changed"
            )
            await connection.execute(ENDINGS["revoked"])
        await pool.execute("ALTER TABLE device_registry ENABLE TRIGGER device_registry_changed")

        async def has_ended() -> bool:
            await pool.execute(
                "UPDATE device_registry SET metadata = jsonb_build_object('n', random())"
                " WHERE device_id = 'dev2'"
            )
            return session.ended.is_set()

        await eventually(has_ended, "the end of the session")


async def test_whoever_guesses_is_limited_and_locks_nobody_out(
    host: Host, nats_server: NatsServer, sessions: ExitStack
) -> None:
    known = await connect(sessions, nats_server)
    assert known.connected == "Success"
    for number in range(12):
        guess = await connect(sessions, nats_server, "dev1", f"guess {number}")
        assert guess.connected == REFUSED

    async def answer(token: str, device: str = "dev1") -> str:
        return (await connect(sessions, nats_server, device, token)).connected

    # The right token passed from here before, so it still does.
    assert await answer(TOKEN) == "Success"
    assert await answer(TOKEN, "dev2") == "Success"


async def test_a_guesser_who_finds_the_token_is_not_told(
    host: Host, nats_server: NatsServer, sessions: ExitStack
) -> None:
    for number in range(11):
        await connect(sessions, nats_server, "dev2", f"guess {number}")

    assert (await connect(sessions, nats_server, "dev2", TOKEN)).connected == REFUSED


async def test_without_the_function_devices_stay_outside_and_named_users_come_in(
    nats_server: NatsServer, sessions: ExitStack
) -> None:
    assert (await connect(sessions, nats_server)).connected == REFUSED
    shared = MqttSession(nats_server.mqtt_port, nats_server.mqtt_user, nats_server.mqtt_password)
    assert (await asyncio.to_thread(sessions.enter_context, shared)).connected == "Success"
    anonymous = await nats.connect(nats_server.anonymous_url)
    await anonymous.close()


async def test_a_client_without_a_name_neither_hears_nor_asks_the_questions(
    host: Host, nats_server: NatsServer, broker: Broker, sessions: ExitStack
) -> None:
    errors: queue.Queue[str] = queue.Queue()

    async def note(error: Exception) -> None:
        errors.put(str(error))

    client: Client = await nats.connect(nats_server.anonymous_url, error_cb=note)
    heard_by_client: list[bytes] = []

    async def listen(message: Any) -> None:
        heard_by_client.append(message.data)

    await client.subscribe(">", cb=listen)
    await client.subscribe(SUBJECT, cb=listen)
    await client.publish(SUBJECT, b"question", reply="answers.here")
    await client.flush()
    await connect(sessions, nats_server)
    await broker.publish_core("an.end", b"the end")

    async def has_ended() -> bool:
        return b"the end" in heard_by_client

    await eventually(has_ended, "the last message")
    await client.close()

    assert not [data for data in heard_by_client if b"eyJ" in data or b"question" in data]
    assert errors.qsize() == 2


async def test_the_log_never_has_a_token(
    host: Host, nats_server: NatsServer, sessions: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    await connect(sessions, nats_server)
    await connect(sessions, nats_server, "dev2", "a wrong token")

    assert "a wrong token" not in caplog.text + nats_server.log


async def test_a_registered_certificate_takes_the_place_of_the_token(
    tls_server: TlsServer, postgres_dsn: str, pool: Any, sessions: ExitStack
) -> None:
    folder = tls_server.certificates
    await add_certificate(pool, folder / "test" / "dev1.pem", "dev1")

    async def connect_with(device: str, user: str | None) -> MqttSession:
        session = MqttSession(tls_server.mqtt_port, user, client_id=user or f"test/{device}")
        pem = folder / "test" / f"{device}.pem"
        session.use_tls(folder / "localhost.pem", pem)
        return await asyncio.to_thread(sessions.enter_context, session)

    async with serving(tls_server, postgres_dsn):
        known = await connect_with("dev1", "test/dev1")
        answers = [
            known.connected,
            (await connect_with("dev1", None)).connected,
            (await connect_with("dev1", "test/dev2")).connected,
            (await connect_with("dev2", "test/dev2")).connected,
        ]
        assert answers == ["Success", REFUSED, REFUSED, REFUSED]
        granted = await asyncio.to_thread(known.subscribe, "tenant/test/device/dev1/#")
        assert granted == "Granted QoS 1"

        await pool.execute("UPDATE device_certificates SET status = 'REVOKED'")
        assert await asyncio.to_thread(known.ended.wait, 10)
        assert (await connect_with("dev1", "test/dev1")).connected == REFUSED


async def test_retained_messages_have_bounds_and_go_their_way_beyond_them(
    nats_server: NatsServer,
    postgres_dsn: str,
    pool: Any,
    broker: Broker,
    sessions: ExitStack,
) -> None:
    messages: asyncio.Queue[Message] = asyncio.Queue()
    await broker.subscribe("telemetry.>", messages.put_nowait)

    async def limits() -> dict[str, Any]:
        config = (await broker.api("STREAM.INFO.$MQTT_rmsgs"))["config"]
        return {name: config[name] for name in ("max_bytes", "max_msg_size")}

    bounds = {"max_retained_bytes": 65_536, "max_retained_message_bytes": 1024, "sweep_s": 1}
    async with serving(nats_server, postgres_dsn, **bounds):
        session = await connect(sessions, nats_server)

        async def are_set() -> bool:
            return await limits() == {"max_bytes": 65_536, "max_msg_size": 1024}

        await eventually(are_set, "the bounds")
        own = "tenant/test/device/dev1"
        await asyncio.to_thread(session.publish, f"{own}/telemetry", "x" * 5000, retain=True)
        assert len(await heard(messages)) > 5000
        for number in range(200):
            await asyncio.to_thread(session.publish, f"{own}/n{number}", "x" * 900, retain=True)
        state = (await broker.api("STREAM.INFO.$MQTT_rmsgs"))["state"]
    assert 0 < state["bytes"] <= 65_536
    # A restart of the server keeps them.
    nats_server.kill()
    nats_server.start()
    again = await Broker.connect(nats_server.url, name="again")
    config = (await again.api("STREAM.INFO.$MQTT_rmsgs"))["config"]
    assert (config["max_bytes"], config["max_msg_size"]) == (65_536, 1024)
    await again.close()
