"""Each list of the management API goes on to its end, page after page."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from functions.domain.paging import Page
from functions.management import claim_codes, device_tokens, subscriptions, tenant_keys, tenants
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller

TENANT = {"tenant_id": "test"}


@pytest.fixture
async def api(postgres_dsn: str) -> AsyncIterator[Caller]:
    pool = await open_pool(postgres_dsn, max_size=2)
    caller = Caller(pool, settings=device_tokens.DeviceSettings())
    await caller.ask(tenants.create_tenant, **TENANT, subscription=None)
    yield caller
    await pool.close()


@pytest.mark.parametrize(
    ("create", "fields", "list_page", "name"),
    [
        (
            subscriptions.create_subscription,
            {},
            subscriptions.list_subscriptions,
            "subscription_id",
        ),
        (tenant_keys.create_tenant_key, {}, tenant_keys.list_tenant_keys, "key_id"),
        (
            claim_codes.create_claim_code,
            {"site_id": "s1"},
            claim_codes.list_claim_codes,
            "claim_code_id",
        ),
    ],
)
async def test_what_has_an_id_of_the_database_is_listed_to_the_end(
    api: Caller,
    create: Callable[..., Awaitable[Any]],
    fields: dict[str, str],
    list_page: Callable[..., Awaitable[Page[Any]]],
    name: str,
) -> None:
    made = {getattr(await api.ask(create, **TENANT, **fields), name) for _ in range(5)}
    found: list[Any] = []
    cursor = None
    while True:
        page = await api.ask(list_page, **TENANT, limit=2, cursor=cursor)
        assert len(page.items) <= 2
        found += [getattr(item, name) for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(found) == 5
    assert set(found) == made


async def test_keys_that_ended_are_bounded(api: Caller) -> None:
    await api.ask(tenants.create_tenant, tenant_id="other", subscription=None)
    insert = (
        "INSERT INTO tenant_keys (tenant_id, key_sha256, created_at, revoked_at, expires_at)"
        " SELECT $1::text, sha256(($1::text || n)::bytea),"
        " '2026-01-01Z'::timestamptz + interval '1 s' * n,"
        " CASE n % 2 WHEN 0 THEN now() END, CASE n % 2 WHEN 1 THEN now() END"
        " FROM generate_series(1, 1500) AS n"
    )
    for tenant in ("test", "other"):
        await api.pool.execute(insert, tenant)
    kept = await api.ask(tenant_keys.create_tenant_key, **TENANT)
    rows = await api.pool.fetch("SELECT tenant_id, count(*) FROM tenant_keys GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in rows] == [("other", 1500), ("test", 1001)]
    newest = await api.ask(tenant_keys.list_tenant_keys, **TENANT, limit=1, cursor=None)
    assert [key.key_id for key in newest.items] == [kept.key_id]
    oldest = "SELECT min(created_at) FROM tenant_keys WHERE tenant_id = $1"
    assert await api.pool.fetchval(oldest, "test") > await api.pool.fetchval(oldest, "other")
