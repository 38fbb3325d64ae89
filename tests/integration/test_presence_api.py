"""Presence in the management API, and the notes of those who take messages."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from functions.management import device_presence, devices
from functions.management import tenants as owners
from functions.management.device_tokens import DeviceSettings
from functions.presence.sessions import EndedSession, Session
from functions.presence.store import Changes, settle
from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.ingest import STORED_AT_NS, Ingest, raw, register, started

DEVICE = {"tenant_id": "test", "device_id": "dev1"}
NOW = datetime.now(UTC) - timedelta(minutes=1)


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=4)
    caller = Caller(pool, settings=DeviceSettings())
    await caller.ask(owners.create_tenant, tenant_id="test", name="Test")
    for number in range(1, 4):
        await caller.ask(
            devices.register_device, tenant_id="test", device_id=f"dev{number}", site_id="s1"
        )
    yield caller
    await pool.close()


async def apply(api: Caller, changes: Changes, horizon: datetime | None = None) -> int:
    async with api.pool.acquire() as connection, connection.transaction():
        return len(
            await settle(connection, changes, timeout_s=600, horizon=horizon or datetime.now(UTC))
        )


def session(number: int, device: str = "dev1", at: datetime = NOW) -> Session:
    return Session("NSERVER", number, "test", device, at, at)


async def test_a_device_shows_its_presence_and_its_last_changes(api: Caller) -> None:
    never = await api.ask(device_presence.get_presence, **DEVICE)
    assert (never.status, never.since, never.last_seen_at, never.changes) == (
        "never_seen",
        None,
        None,
        [],
    )
    await apply(api, Changes(opened=[session(1), session(2)]))
    ended_at = NOW + timedelta(seconds=1)
    shown = await api.ask(device_presence.get_presence, **DEVICE)
    assert (shown.status, shown.reason, shown.since, shown.sessions) == (
        "online",
        "connected",
        NOW,
        2,
    )

    await apply(api, Changes(ended=[EndedSession(session(n), ended_at) for n in (1, 2)]))

    shown = await api.ask(device_presence.get_presence, **DEVICE)
    assert (shown.status, shown.reason, shown.since, shown.sessions) == (
        "offline",
        "disconnected",
        ended_at,
        0,
    )
    assert [(each.number, each.status) for each in shown.changes] == [(2, "offline"), (1, "online")]
    code = await api.refuse(device_presence.get_presence, tenant_id="test", device_id="nobody")
    assert code == ("DEVICE_NOT_FOUND", 404)


async def test_devices_are_listed_by_presence(api: Caller) -> None:
    await apply(api, Changes(opened=[session(1), session(2, "dev2")]))
    await apply(api, Changes(ended=[EndedSession(session(2, "dev2"), NOW)]))

    async def listed(presence: str | None) -> list[tuple[str, str]]:
        page = await api.ask(devices.list_devices, tenant_id="test", presence=presence)
        return [(each.device_id, each.presence) for each in page.items]

    assert await listed("online") == [("dev1", "online")]
    assert await listed("offline") == [("dev2", "offline")]
    assert await listed("never_seen") == [("dev3", "never_seen")]
    assert len(await listed(None)) == 3
    one = await api.ask(devices.get_device, **DEVICE)
    assert (one.presence, one.presence_since, one.last_seen_at) == ("online", NOW, NOW)


async def test_last_seen_is_right_to_the_newest_row(api: Caller) -> None:
    await apply(api, Changes(seen={("test", "dev1"): NOW}))
    newest = NOW + timedelta(seconds=40)
    await api.pool.execute(
        "INSERT INTO telemetry VALUES ($1, 'test', 'dev1', 's1', 'telemetry', 1, '{}')", newest
    )

    one = await api.ask(devices.get_device, **DEVICE)
    page = await api.ask(devices.list_devices, tenant_id="test")
    shown = await api.ask(device_presence.get_presence, **DEVICE)

    assert one.last_seen_at == page.items[0].last_seen_at == shown.last_seen_at == newest


async def test_a_timeout_of_its_own_judges_a_device_again(api: Caller) -> None:
    await apply(api, Changes(seen={("test", "dev1"): NOW - timedelta(seconds=60)}))

    shown = await api.ask(device_presence.set_presence_timeout, **DEVICE, timeout_s=30)

    assert (shown.timeout_s, shown.status) == (30, "online")
    due = await api.pool.fetch("SELECT device_id FROM device_presence WHERE check_at <= now()")
    assert [row["device_id"] for row in due] == ["dev1"]
    assert await apply(api, Changes(due=[("test", "dev1")])) == 1
    shown = await api.ask(device_presence.set_presence_timeout, **DEVICE, timeout_s=None)
    assert (shown.timeout_s, shown.status, shown.reason) == (None, "offline", "silent")
    assert await apply(api, Changes(due=[("test", "dev1")])) == 1
    nobody = {"tenant_id": "test", "device_id": "nobody"}
    code = await api.refuse(device_presence.set_presence_timeout, **nobody, timeout_s=30)
    assert code == ("DEVICE_NOT_FOUND", 404)


async def test_while_ingest_is_behind_silence_proves_nothing(api: Caller) -> None:
    seen = NOW - timedelta(hours=1)
    await apply(api, Changes(seen={("test", "dev1"): seen}), seen)
    due = Changes(due=[("test", "dev1")])

    assert await apply(api, due, seen + timedelta(seconds=599)) == 0
    assert await apply(api, due, seen + timedelta(seconds=600)) == 1


async def test_the_same_changes_once_more_change_nothing(api: Caller) -> None:
    opened = Changes(opened=[session(1)])
    ended = Changes(ended=[EndedSession(session(1), NOW)])
    assert [await apply(api, each) for each in (opened, opened, ended)] == [1, 0, 1]
    # A host that is slower than the one that heard all this.
    assert [await apply(api, each) for each in (opened, ended, opened)] == [0, 0, 0]
    late = session(1)._replace(known_at=NOW - timedelta(seconds=1))
    assert await apply(api, Changes(opened=[late])) == 0
    # Its server lists it still: it was taken for lost.
    listed = session(1)._replace(known_at=NOW + timedelta(seconds=1))
    assert await apply(api, Changes(opened=[listed])) == 1


async def test_a_server_whose_clock_is_ahead_hides_no_later_message(api: Caller) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    await apply(api, Changes(opened=[session(1, at=ahead)]))
    assert await apply(api, Changes(ended=[EndedSession(session(1, at=ahead), ahead)])) == 1
    shown = await api.ask(device_presence.get_presence, **DEVICE)
    assert shown.status == "offline"
    assert shown.since is not None
    assert shown.last_seen_at is not None
    assert max(shown.since, shown.last_seen_at) <= datetime.now(UTC)
    device = ("test", "dev1")
    now = datetime.now(UTC)
    assert await apply(api, Changes(seen={device: now}, sessionless={device: now}), now) == 1
    # Noted by a stream whose clock is ahead, too: it is silent when its time is over.
    await apply(api, Changes(seen={device: ahead}), now)
    assert await apply(api, Changes(due=[device]), now + timedelta(seconds=600)) == 1


async def test_a_lost_server_that_is_back_is_believed_though_its_clock_is_behind(
    api: Caller,
) -> None:
    behind = datetime.now(UTC) - timedelta(hours=1)
    one = session(1, at=behind)
    await apply(api, Changes(opened=[one]))
    lost = EndedSession(one, datetime.now(UTC), is_lost=True)
    assert await apply(api, Changes(ended=[lost])) == 1
    # The beginning, which a slower host has yet to apply, is no sign of life.
    assert await apply(api, Changes(opened=[one])) == 0
    listed = one._replace(known_at=behind + timedelta(seconds=30))
    assert await apply(api, Changes(opened=[listed])) == 1


async def test_an_end_that_is_heard_before_its_beginning_stands(api: Caller) -> None:
    assert await apply(api, Changes(ended=[EndedSession(session(1), NOW)])) == 0
    assert await apply(api, Changes(opened=[session(1)])) == 0


async def test_devices_that_are_not_registered_are_left_out(api: Caller) -> None:
    changes = Changes(
        opened=[session(1, "nobody")],
        ended=[EndedSession(session(2, "nobody"), NOW)],
        seen={("nobody", "dev1"): NOW, ("test", "dev1"): NOW},
    )
    assert await apply(api, changes) == 1
    assert await api.pool.fetchval("SELECT count(*) FROM device_sessions") == 0


@pytest.fixture
async def function(postgres_dsn: str, broker: Broker) -> AsyncIterator[Ingest]:
    pool = await open_pool(postgres_dsn, max_size=1)
    # Before the function starts: it would forget the device when it hears of its registration.
    await register(pool)
    await pool.execute(
        "INSERT INTO presence_watch (watched_until, timeout_s) VALUES (now() + '1 day', 600)"
    )
    await pool.close()
    async with started(postgres_dsn, broker) as running:
        yield running


async def noted(function: Ingest) -> list[tuple[list[str], list[datetime]]]:
    rows = await function.pool.fetch("SELECT * FROM device_activity ORDER BY seen_at")
    return [(row["device_ids"], row["seen_at"]) for row in rows]


async def test_ingest_notes_a_device_once_a_minute_with_its_rows(function: Ingest) -> None:
    def at(seconds: int) -> datetime:
        return datetime.fromtimestamp(STORED_AT_NS // 1000 / 1_000_000 + seconds, UTC)

    await function.run(raw(1), raw(2), raw(3, body=b"no JSON"))
    assert await noted(function) == [(["dev1"], [at(2)])]
    await function.run(raw(61))
    assert len(await noted(function)) == 1
    await function.run(raw(62))
    assert await noted(function) == [(["dev1"], [at(2)]), (["dev1"], [at(62)])]


async def test_a_short_timeout_is_noted_more_often(function: Ingest) -> None:
    await function.pool.execute("UPDATE device_registry SET presence_timeout_s = 15")
    await function.restart()
    for sequence in (1, 5, 6, 7):
        await function.run(raw(sequence))
    assert len(await noted(function)) == 2


async def test_nothing_is_noted_while_nobody_watches(function: Ingest) -> None:
    await function.pool.execute("UPDATE presence_watch SET watched_until = now()")
    await function.run(raw(1))
    assert await noted(function) == []
    assert len(await function.rows()) == 1
