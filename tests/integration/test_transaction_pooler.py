"""A pooler in transaction mode between host and PostgreSQL is detected, and no cache trusts it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import structlog

from functions.domain.registry import Registry
from runtime.errors import ConfigError
from runtime.resource.session_check import check_session
from tests.support.host import fresh, start_host
from tests.support.ingest import register
from tests.support.servers import NatsServer, PostgresServer
from tests.support.transaction_pooler import TransactionPooler

KEY = ("test", "dev1")


@pytest.fixture
async def pooled_dsn(postgres_server: PostgresServer, postgres_dsn: str) -> AsyncIterator[str]:
    async with TransactionPooler(postgres_server.socket) as pooler:
        yield pooler.dsn(postgres_dsn)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.resource.session_check.ANSWER_LIMIT_S", 0.3)
    monkeypatch.setattr("functions.domain.changes._ANSWER_WITHIN_S", 0.3)


@pytest.mark.usefixtures("impatient")
async def test_a_host_does_not_start_and_says_the_way_out(
    nats_server: NatsServer, pooled_dsn: str
) -> None:
    spec = {"handler": "on_tick", "schedule": {"every": "1h"}, "uses": ["postgres"]}
    with pytest.raises(ConfigError, match=r"transaction mode.*pool_mode = session"):
        await start_host(nats_server.url, {fresh("work"): spec}, database_url=pooled_dsn)


async def test_the_server_s_own_address_passes(postgres_dsn: str) -> None:
    await check_session(postgres_dsn)


@pytest.mark.usefixtures("impatient")
async def test_a_revoked_device_is_seen_although_no_notification_comes(
    postgres_dsn: str, pooled_dsn: str
) -> None:
    direct = await asyncpg.create_pool(postgres_dsn, min_size=1, max_size=1)
    await register(direct)
    # Without prepared statements, with which an operator would make reads work.
    pool = await asyncpg.create_pool(pooled_dsn, min_size=3, max_size=3, statement_cache_size=0)
    registry = Registry(pool, structlog.stdlib.get_logger())
    await registry.start()
    trusted = registry.changes.trusted
    before = (await registry.devices([KEY]))[KEY]
    await direct.execute("UPDATE device_registry SET status = 'REVOKED'")
    after = (await registry.devices([KEY]))[KEY]
    await registry.stop()
    pool.terminate()
    await direct.close()

    assert not trusted
    assert before is not None
    assert before.status == "ACTIVE"
    assert after is not None
    assert after.status == "REVOKED"


async def test_a_cache_is_not_trusted_while_its_own_notifications_do_not_come_back(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("functions.domain.changes._PROVE_EVERY_S", 0.05)
    monkeypatch.setattr("functions.domain.changes._ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr("functions.domain.changes._RETRY_AFTER_S", 0.05)
    pool = await asyncpg.create_pool(postgres_dsn, min_size=2, max_size=2)
    registry = Registry(pool, structlog.stdlib.get_logger())
    await registry.start()
    at_first = registry.changes.trusted
    # As a pooler does that gives the connection to another client.
    holders: list[Any] = pool._holders  # type: ignore[attr-defined]
    [listening] = [holder._con for holder in holders if holder._in_use]
    await listening.execute("UNLISTEN *")
    async with asyncio.timeout(60):
        while registry.changes.trusted:  # noqa: ASYNC110 - the listener tells nobody
            await asyncio.sleep(0.01)
        while not registry.changes.trusted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await registry.stop()
    await pool.close()

    assert at_first
