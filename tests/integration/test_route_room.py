"""A tenant's routes are bounded, also when many are created at once."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from functions.management.route_room import check_room
from runtime import Reject
from runtime.resource.postgres import open_pool

Pool = asyncpg.Pool
_ADD = (
    "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type)"
    " VALUES ($1, gen_random_uuid()::text, '#', 'webhook')"
)


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator["Pool[asyncpg.Record]"]:
    opened = await open_pool(postgres_dsn, max_size=5)
    await opened.execute("INSERT INTO tenants (tenant_id) VALUES ('t'), ('other')")
    yield opened
    await opened.close()


async def add(pool: "Pool[asyncpg.Record]", tenant: str, max_routes: int) -> str:
    """Add a route as the endpoint does; the code of a refusal."""
    try:
        async with pool.acquire() as connection, connection.transaction():
            await check_room(connection, tenant, max_routes)
            await connection.execute(_ADD, tenant)
    except Reject as refusal:
        return refusal.code
    return ""


async def test_requests_at_the_same_time_do_not_exceed_the_bound(
    pool: "Pool[asyncpg.Record]",
) -> None:
    codes = await asyncio.gather(*(add(pool, "t", 3) for _ in range(8)))
    assert sorted(codes) == [""] * 3 + ["TOO_MANY_ROUTES"] * 5
    assert await add(pool, "other", 3) == ""
    assert await add(pool, "nobody", 3) == "TENANT_NOT_FOUND"
