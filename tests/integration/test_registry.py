"""The registry's cache on a real PostgreSQL is never stale, even without notifications."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import structlog

from functions.domain.changes import ChangeListener
from functions.domain.registry import Registry
from functions.domain.topics import Topic
from runtime.resource.postgres import open_pool
from tests.support.ingest import register

KEY = ("test", "dev1")
TOPIC = Topic("test", "dev1", "telemetry")


class Heard:
    """Lets a test wait until a registry has received a notification."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.pool = registry._pool
        self._news = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = 0
        self._inner: Callable[[str], None] = registry.changes._on_change
        registry.changes._on_change = self._hear

    def _hear(self, change: str) -> None:
        self._inner(change)
        self._count += 1
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def register(self) -> None:
        """Register the device and wait for the notifications: tenant, subscription, device."""
        before = self._count
        await register(self.pool)
        await self.until(before + 3)

    async def change(self, statement: str) -> None:
        """Run a statement and wait for its notification."""
        before = self._count
        await self.pool.execute(statement)
        await self.until(before + 1)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(lambda: self._count >= count)

    async def status(self) -> str | None:
        device = (await self.registry.devices([KEY]))[KEY]
        return None if device is None else device.status


@pytest.fixture
async def heard(postgres_dsn: str) -> AsyncIterator[Heard]:
    pool = await open_pool(postgres_dsn, max_size=4)
    registry = Registry(pool, structlog.stdlib.get_logger())
    heard = Heard(registry)
    await registry.start()
    assert registry.changes.trusted
    yield heard
    await registry.stop()
    await pool.close()


async def test_a_device_is_asked_for_once_until_it_changes(heard: Heard) -> None:
    await heard.register()
    assert await heard.status() == "ACTIVE"
    first = await heard.registry.devices([KEY])
    assert (await heard.registry.devices([KEY]))[KEY] is first[KEY]
    await heard.change("UPDATE device_registry SET status = 'REVOKED'")
    assert await heard.status() == "REVOKED"
    await heard.change("DELETE FROM device_registry")
    assert await heard.status() is None


async def test_a_device_known_to_be_absent_appears_at_once(heard: Heard) -> None:
    assert await heard.status() is None
    await heard.register()
    assert await heard.status() == "ACTIVE"


@pytest.mark.parametrize(
    ("statement", "field", "value"),
    [
        ("UPDATE tenants SET status = 'SUSPENDED'", "tenant_status", "SUSPENDED"),
        ("UPDATE subscriptions SET starts_at = '1970-01-01 00:01:01Z'", "regular_from_ns", 10**9),
        ("UPDATE subscriptions SET status = 'SUSPENDED'", "regular_until_ns", 0),
        ("DELETE FROM subscriptions", "subscriptions", ()),
        ("UPDATE device_registry SET site_id = 's2'", "site_id", "s2"),
        ("UPDATE device_registry SET provision_token_hash = NULL", "token_hash", None),
    ],
)
async def test_whatever_a_verdict_rests_on_is_heard(
    heard: Heard, statement: str, field: str, value: object
) -> None:
    await heard.register()
    device = (await heard.registry.devices([KEY]))[KEY]
    assert getattr(device, field) != value
    await heard.change(statement)
    device = (await heard.registry.devices([KEY]))[KEY]
    assert getattr(device, field) == value


async def test_a_certificate_is_heard_of(heard: Heard) -> None:
    await heard.register()
    before = (await heard.registry.devices([KEY]))[KEY]
    assert before is not None
    assert before.certificates == ()
    await heard.change(
        "INSERT INTO device_certificates (tenant_id, device_id, fingerprint_sha256, not_after)"
        " VALUES ('test', 'dev1', 'ab', 'infinity')"
    )
    after = (await heard.registry.devices([KEY]))[KEY]
    assert after is not None
    assert len(after.certificates) == 1


async def test_routes_are_remembered_until_they_change(heard: Heard) -> None:
    await heard.register()
    assert await heard.registry.routes(["test"]) == {"test": None}
    await heard.change(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type)"
        " VALUES ('test', 'all', 'tenant/test/#', 'webhook')"
    )
    routes = (await heard.registry.routes(["test"]))["test"]
    assert routes is not None
    assert len(routes.on(TOPIC)) == 1
    assert routes.on(Topic("other", "d", "telemetry")) == ()
    await heard.change("UPDATE message_routes SET is_enabled = false")
    assert await heard.registry.routes(["test"]) == {"test": None}


async def test_nothing_remembered_is_believed_while_changes_are_not_heard(heard: Heard) -> None:
    await heard.register()
    assert await heard.status() == "ACTIVE"
    heard.registry.changes.trusted = False
    await heard.pool.execute("ALTER TABLE device_registry DISABLE TRIGGER USER")
    await heard.pool.execute("UPDATE device_registry SET status = 'REVOKED'")
    assert await heard.status() == "REVOKED"


async def test_a_lost_listener_comes_back_and_forgets_everything(heard: Heard) -> None:
    await heard.register()
    assert await heard.status() == "ACTIVE"
    count = heard._count
    await heard.pool.execute("ALTER TABLE device_registry DISABLE TRIGGER USER")
    await heard.pool.execute("UPDATE device_registry SET status = 'REVOKED'")
    assert await heard.status() == "ACTIVE"
    await heard.pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    )
    await heard.until(count + 1)
    assert heard.registry.changes.trusted
    assert await heard.status() == "REVOKED"


async def test_an_answer_overtaken_by_a_change_is_not_kept(heard: Heard) -> None:
    await heard.register()
    inner = heard.registry._devices._load
    changes = 0

    async def load_and_be_overtaken(keys: list[tuple[str, str]]) -> dict[tuple[str, str], object]:
        nonlocal changes
        loaded = await inner(keys)
        if not changes:
            changes += 1
            await heard.change("UPDATE device_registry SET status = 'REVOKED'")
        return loaded  # type: ignore[return-value]

    heard.registry._devices._load = load_and_be_overtaken  # type: ignore[assignment]
    assert await heard.status() == "ACTIVE"
    assert await heard.status() == "REVOKED"


async def test_stopping_gives_the_connection_back(postgres_dsn: str) -> None:
    pool = await open_pool(postgres_dsn, max_size=2)
    listener = ChangeListener(pool, lambda _: None, structlog.stdlib.get_logger())
    await listener.start()
    await listener.stop()
    assert not listener.trusted
    async with pool.acquire(timeout=5), pool.acquire(timeout=5) as second:
        assert await second.fetchval("SELECT 1") == 1
    await pool.close()


async def test_a_pool_with_no_second_connection_is_not_trusted_and_holds_nobody_up(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.domain.changes._ANSWER_WITHIN_S", 0.2)
    pool = await open_pool(postgres_dsn, max_size=1)
    listener = ChangeListener(pool, lambda _: None, structlog.stdlib.get_logger())
    await asyncio.wait_for(listener.start(), 60)
    assert not listener.trusted
    await listener.stop()
    await pool.close()
