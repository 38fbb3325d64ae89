"""Presence of devices: by the events of the MQTT listener, and by silence."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from functions.domain.device_events import DeviceEvent
from runtime.host import Host
from runtime.resource.postgres import open_pool
from tests.support.host import eventually
from tests.support.ingest import register
from tests.support.mqtt import MqttSession
from tests.support.presence import Presence, begin, end, watching
from tests.support.servers import NatsServer


@pytest.fixture
async def presence(postgres_dsn: str) -> AsyncIterator[Presence]:
    pool = await open_pool(postgres_dsn, max_size=4)
    for device in ("dev1", "dev2"):
        await register(pool, device=device)
    yield Presence(pool)
    await pool.close()


@pytest.fixture
async def host(
    nats_server: NatsServer, postgres_dsn: str, presence: Presence
) -> AsyncIterator[Host]:
    async with watching(nats_server, postgres_dsn, compare_s=3600) as running:
        await presence.watched()
        yield running


async def test_a_device_is_online_while_its_session_is_open(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    took_s = []
    for _ in range(3):
        device = await begin(nats_server)
        took_s.append(await presence.becomes("online"))
        await end(device)
        took_s.append(await presence.becomes("offline"))

    # The best of three: whatever else stalls the machine is not in all of them.
    assert min(took_s[::2]) < 2
    assert min(took_s[1::2]) < 2
    assert await presence.events() == [("online", "connected"), ("offline", "disconnected")] * 3
    row = await presence.of()
    assert row["transitions"] == 6
    assert row["last_seen_at"] == row["session_ended_at"] == row["changed_at"]
    assert datetime.now(UTC) - row["changed_at"] < timedelta(minutes=1)


async def test_a_session_that_takes_the_place_of_another_changes_nothing(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    first = await begin(nats_server)
    await presence.becomes("online")
    second = await begin(nats_server)
    # The client whose session was taken would come back by itself, and take it in turn.
    await asyncio.to_thread(first._client.loop_stop)

    async def has_ended() -> bool:
        found: int = await presence.pool.fetchval(
            "SELECT count(*) FROM device_sessions WHERE ended_at IS NOT NULL"
        )
        return found == 1

    await eventually(has_ended, "the end of the first session")

    assert (await presence.of())["status"] == "online"
    assert await presence.events() == [("online", "connected")]
    await end(second)
    await presence.becomes("offline")


async def test_a_device_with_two_sessions_is_online_until_both_have_ended(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    one, other = await begin(nats_server, client="/1"), await begin(nats_server, client="/2")
    await presence.becomes("online")
    await end(one)
    # Events come in order: when the other device's are applied, the end of this session was.
    await end(await begin(nats_server, "dev2"))
    await presence.changes(2, "dev2")
    assert (await presence.of())["status"] == "online"

    await end(other)

    await presence.becomes("offline")
    assert await presence.events() == [("online", "connected"), ("offline", "disconnected")]


async def test_whoever_does_not_prove_to_be_the_device_changes_nothing(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    device = await begin(nats_server)
    await presence.becomes("online")
    for user, password, client_id in (
        ("test/dev1", "wrong", "test/dev1"),
        ("test/dev2", "wrong", "test/dev2"),
        (nats_server.mqtt_user, nats_server.mqtt_password, "test/dev2"),
    ):
        claims = MqttSession(nats_server.mqtt_port, user, password, client_id=client_id)
        await asyncio.to_thread(claims.__enter__)
        await end(claims)
    # Events come in order, see above.
    await end(await begin(nats_server, client="/3"))

    async def has_both() -> bool:
        found: int = await presence.pool.fetchval("SELECT count(*) FROM device_sessions")
        return found == 2

    await eventually(has_both, "the other session of the device")
    assert await presence.of("dev2") is None
    assert await presence.events() == [("online", "connected")]
    await end(device)


async def test_a_device_without_a_session_is_offline_when_it_is_silent(
    host: Host, presence: Presence
) -> None:
    await presence.pool.execute("UPDATE device_registry SET presence_timeout_s = 15")
    at = datetime.now(UTC) - timedelta(seconds=8)
    await presence.see(at=at)
    await presence.becomes("online")
    row = await presence.of()
    assert (row["changed_at"], row["last_seen_at"]) == (at, at)

    await presence.becomes("offline", within_s=60)

    row = await presence.of()
    late = datetime.now(UTC) - at - timedelta(seconds=15)
    assert timedelta(0) < late < timedelta(seconds=10)
    assert row["changed_at"] == at + timedelta(seconds=15)
    assert await presence.events() == [("online", "seen"), ("offline", "silent")]
    await presence.see()
    await presence.becomes("online")


async def test_a_row_of_telemetry_that_nobody_noted_counts_against_silence(
    host: Host, presence: Presence
) -> None:
    now = datetime.now(UTC)
    await presence.pool.execute(
        "INSERT INTO telemetry VALUES ($1, 'test', 'dev1', 's1', 'telemetry', 1, '{}')", now
    )
    await presence.see(at=now - timedelta(seconds=59))
    await presence.see("dev2", at=now - timedelta(seconds=59))
    await presence.becomes("online")
    await presence.becomes("online", "dev2")

    await presence.pool.execute("UPDATE device_registry SET presence_timeout_s = 30")
    await presence.pool.execute("UPDATE device_presence SET check_at = now()")

    await presence.becomes("offline", "dev2")
    row = await presence.of()
    assert (row["status"], row["last_seen_at"]) == ("online", now)


async def test_a_session_keeps_a_silent_device_online_unless_it_has_a_timeout_of_its_own(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    device = await begin(nats_server)
    await presence.becomes("online")
    assert (await presence.of())["check_at"] is None

    await presence.pool.execute("UPDATE device_registry SET presence_timeout_s = 15")
    await presence.pool.execute(
        "UPDATE device_presence SET check_at = now(), last_seen_at = now() - interval '12 s'"
    )
    await presence.becomes("offline")
    await presence.see()
    await presence.becomes("online")

    assert await presence.events() == [
        ("online", "connected"),
        ("offline", "silent"),
        ("online", "seen"),
    ]
    await end(device)


async def test_what_nobody_heard_is_found_by_the_next_comparison(
    nats_server: NatsServer, postgres_dsn: str, presence: Presence
) -> None:
    async with watching(nats_server, postgres_dsn):
        await presence.watched()
        stays, leaves = await begin(nats_server), await begin(nats_server, "dev2")
        await presence.becomes("online")
        await presence.becomes("online", "dev2")
        await end(stays)
        await presence.becomes("offline")
    # Without the host nobody hears, and nobody is let in either: the session is there before.
    async with watching(nats_server, postgres_dsn):
        stays = await begin(nats_server)
        await presence.becomes("online")
    await end(leaves)
    await presence.pool.execute("DELETE FROM device_sessions WHERE device_id = 'dev1'")

    async with watching(nats_server, postgres_dsn):
        await presence.becomes("offline", "dev2")

        async def is_open() -> bool:
            found: bool = await presence.pool.fetchval(
                "SELECT EXISTS (SELECT FROM device_sessions"
                " WHERE device_id = 'dev1' AND ended_at IS NULL)"
            )
            return found

        await eventually(is_open, "the session that was not known")
        assert (await presence.of())["status"] == "online"
        await end(stays)
        await presence.becomes("offline")


async def test_a_listing_that_was_asked_for_before_the_end_does_not_open_the_session_again(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    await end(await begin(nats_server))
    await presence.changes(2)
    await presence.pool.execute(
        "UPDATE presence_watch SET compared_at = NULL, comparing_since = NULL"
    )
    await presence.watched()

    assert await presence.events() == [("online", "connected"), ("offline", "disconnected")]


async def test_a_killed_server_takes_its_sessions_with_it(
    tmp_path_factory: pytest.TempPathFactory, postgres_dsn: str, presence: Presence
) -> None:
    server = NatsServer(tmp_path_factory.mktemp("killed") / "nats")
    try:
        async with watching(server, postgres_dsn):
            await presence.watched()
            gone, back = await begin(server), await begin(server, "dev2")
            await presence.becomes("online")
            await presence.becomes("online", "dev2")
            await asyncio.to_thread(gone._client.loop_stop)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

            await presence.becomes("offline")

            # The client of the other device has connected again by itself, to the new server.
            await presence.becomes("online", "dev2")
            assert await presence.events() == [("online", "connected"), ("offline", "server_lost")]
            await end(back)
    finally:
        server.stop()


async def test_every_change_is_an_event_of_its_device(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    await end(await begin(nats_server))
    await presence.changes(2)

    online, offline = await presence.messages()

    assert DeviceEvent.model_validate(online).topic == "tenant/test/device/dev1/presence"
    assert online["event_id"] != offline["event_id"]
    assert online["payload"]["status"] == "online"
    assert offline["payload"] | {"at": None, "last_seen_at": None} == {
        "status": "offline",
        "reason": "disconnected",
        "at": None,
        "last_seen_at": None,
        "number": 2,
    }
    row = await presence.of()
    assert datetime.fromisoformat(offline["payload"]["at"]) == row["changed_at"]


async def test_the_last_changes_of_a_device_are_kept(host: Host, presence: Presence) -> None:
    await presence.see(at=datetime.now(UTC))
    await presence.becomes("online")
    await presence.pool.execute(
        "UPDATE device_presence SET transitions = 1000, last_seen_at = now() - interval '1 day',"
        " check_at = now()"
    )
    await presence.becomes("offline")

    kept = await presence.pool.fetch("SELECT place, number FROM device_presence_events")
    assert {(row["place"], row["number"]) for row in kept} == {(1, 1), (1001 % 32, 1001)}


async def test_nothing_is_left_of_a_deleted_device(
    host: Host, nats_server: NatsServer, presence: Presence
) -> None:
    device = await begin(nats_server)
    await presence.becomes("online")
    await presence.see("nobody")
    await presence.pool.execute("DELETE FROM device_registry WHERE device_id = 'dev1'")
    assert await asyncio.to_thread(device.ended.wait, 60)
    await end(device)
    await presence.see("dev2")
    await presence.becomes("online", "dev2")

    left = await presence.pool.fetch(
        "SELECT device_id FROM device_presence"
        " UNION ALL SELECT device_id FROM device_sessions"
        " UNION ALL SELECT device_id FROM device_presence_events"
    )
    assert {row["device_id"] for row in left} == {"dev2"}


async def test_two_hosts_that_hear_the_same_write_one_event(
    host: Host, nats_server: NatsServer, postgres_dsn: str, presence: Presence
) -> None:
    async with watching(nats_server, postgres_dsn):
        for number in range(5):
            device = await begin(nats_server)
            await presence.changes(2 * number + 1)
            await end(device)
            await presence.changes(2 * number + 2)

    assert await presence.events() == [("online", "connected"), ("offline", "disconnected")] * 5
    assert [one["payload"]["number"] for one in await presence.messages()] == list(range(1, 11))
