"""PostgreSQL connections: each function has a share, and waiting for one uses up no attempt."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from runtime import Context
from runtime.broker.connection import Broker
from runtime.errors import ConfigError, NoConnection
from runtime.resource.function_pool import FunctionPool
from runtime.resource.postgres import open_pool
from tests.support.host import (
    Journal,
    fresh,
    letters_of,
    running_host,
    start_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.support.servers import NatsServer


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(postgres_dsn, max_size=5)
    yield opened
    await opened.close()


def _spec(stream: str, subject: str, **more: Any) -> dict[str, Any]:
    consumer = {"stream": stream, "filter_subjects": [f"{stream}.{subject}"], "ack_wait": "2s"}
    return {"handler": "on_event", "consumer": consumer, "uses": ["postgres"], **more}


async def test_a_function_that_holds_its_connections_leaves_those_of_others_and_the_probe_alone(
    broker: Broker, nats_server: NatsServer, postgres_dsn: str
) -> None:
    stream, slow, quick = fresh("S"), fresh("slow"), fresh("quick")
    journal, release = Journal(), asyncio.Event()

    async def hold(ctx: Context, event: Any) -> None:
        journal.add("called")
        async with ctx.postgres.acquire():
            journal.add("holds")
            await release.wait()

    async def read(ctx: Context, event: Any) -> None:
        journal.add(await ctx.postgres.fetchval("SELECT 'read'"))

    functions = {slow: _spec(stream, "slow"), quick: _spec(stream, "quick")}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(
        nats_server.url,
        functions,
        {slow: hold, quick: read},
        streams=streams,
        database_url=postgres_dsn,
    ) as host:
        for _ in range(16):
            await broker.publish(f"{stream}.slow", b"x")
        await journal.wait(16 + 4)
        await broker.publish(f"{stream}.quick", b"x")
        await journal.wait(16 + 4 + 1)
        probe = host.probes.by_name()["postgres"]
        is_ready = await asyncio.wait_for(probe(), 30)
        held = list(journal.entries)
        release.set()
        await wait_until_settled(broker, stream, slow)

    assert held.count("holds") == 4
    assert held[-1] == "read"
    assert is_ready is None
    assert journal.entries.count("called") == journal.entries.count("holds") == 16


async def test_waiting_for_a_connection_uses_up_neither_time_nor_an_attempt(
    broker: Broker, nats_server: NatsServer, postgres_dsn: str
) -> None:
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        async with ctx.postgres.acquire():
            journal.add(ctx.attempt)
            await asyncio.sleep(0.6)

    spec = _spec(
        stream, "a", timeout="1s", postgres_connections=1, concurrency=5, retry={"attempts": 1}
    )
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(
        nats_server.url, {work: spec}, {work: act}, streams=streams, database_url=postgres_dsn
    ):
        for _ in range(5):
            await broker.publish(f"{stream}.a", b"x")
        await wait_until_settled(broker, stream, work)

    assert journal.entries == [1] * 5
    assert await letters_of(broker, work) == []


async def test_waiting_in_tasks_of_its_own_is_waiting_of_the_call(
    broker: Broker, nats_server: NatsServer, postgres_dsn: str
) -> None:
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def ask(ctx: Context) -> None:
        async with ctx.postgres.acquire():
            journal.add(ctx.attempt)
            await asyncio.sleep(0.6)

    async def act(ctx: Context, event: Any) -> None:
        await asyncio.gather(*(ask(ctx) for _ in range(4)))

    spec = _spec(stream, "a", timeout="1s", postgres_connections=1, retry={"attempts": 1})
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(
        nats_server.url, {work: spec}, {work: act}, streams=streams, database_url=postgres_dsn
    ):
        await broker.publish(f"{stream}.a", b"x")
        await wait_until_settled(broker, stream, work)

    assert journal.entries == [1] * 4
    assert await letters_of(broker, work) == []


async def test_a_call_that_holds_a_connection_and_waits_for_another_is_given_up_in_the_end(
    broker: Broker,
    nats_server: NatsServer,
    postgres_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.resource.function_pool.LEAST_WAIT_S", 0.1)
    stream, work = fresh("S"), fresh("work")

    async def act(ctx: Context, event: Any) -> None:
        async with ctx.postgres.acquire():
            await ctx.postgres.fetchval("SELECT 1")

    spec = _spec(stream, "a", timeout="100ms", postgres_connections=1, retry={"attempts": 1})
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(
        nats_server.url, {work: spec}, {work: act}, streams=streams, database_url=postgres_dsn
    ):
        await broker.publish(f"{stream}.a", b"x")
        [letter] = await wait_for_letters(broker, work)

    assert letter.error_type == "NoConnection"
    assert "the function holds 1 of 1" in letter.reason


async def test_a_share_that_is_larger_than_the_pool_ends_the_start(
    nats_server: NatsServer, postgres_dsn: str
) -> None:
    spec = {
        "handler": "on_tick",
        "schedule": {"every": "1h"},
        "uses": ["postgres"],
        "postgres_connections": 17,
    }
    with pytest.raises(ConfigError, match="is 17, and the process has 16; lower it, or raise"):
        await start_host(nats_server.url, {fresh("work"): spec}, database_url=postgres_dsn)


async def test_a_share_takes_every_statement_of_a_pool(pool: asyncpg.Pool) -> None:
    share = FunctionPool(pool, 1, 30)
    await share.execute("CREATE TABLE numbers (n int)")
    await share.executemany("INSERT INTO numbers VALUES ($1)", [(1,), (2,)])
    await share.copy_records_to_table("numbers", records=[(3,)])
    async with share.acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM numbers WHERE n = 1")
    connection = await share.acquire()
    await share.release(connection)

    assert [row["n"] for row in await share.fetch("SELECT n FROM numbers ORDER BY n")] == [2, 3]
    assert (await share.fetchrow("SELECT max(n) AS n FROM numbers"))["n"] == 3
    assert await share.fetchval("SELECT count(*) FROM numbers") == 2
    assert share.get_max_size() == 5


@pytest.mark.parametrize("method", ["close", "terminate", "expire_connections"])
async def test_a_share_does_not_end_the_pool_of_all(pool: asyncpg.Pool, method: str) -> None:
    with pytest.raises(AttributeError, match="the pool is shared"):
        getattr(FunctionPool(pool, 1, 30), method)


async def test_a_wait_with_a_limit_of_its_own_ends_as_asyncpg_ends_it(pool: asyncpg.Pool) -> None:
    share = FunctionPool(pool, 1, 30)
    async with share.acquire():
        with pytest.raises(TimeoutError) as ended:
            await share.acquire(timeout=0.05)

    assert isinstance(ended.value, NoConnection)


async def _ask(share: FunctionPool) -> None:
    async with share.acquire() as connection:
        await connection.execute("SELECT 1 / 0")


async def _hold(share: FunctionPool) -> None:
    async with share.acquire():
        await asyncio.Event().wait()


@pytest.mark.parametrize("use", [_ask, _hold])
async def test_no_connection_is_lost_however_its_use_ends(
    pool: asyncpg.Pool, use: Callable[[FunctionPool], Awaitable[None]]
) -> None:
    share = FunctionPool(pool, 2, 30)
    for _ in range(3):
        users = [asyncio.ensure_future(use(share)) for _ in range(6)]
        await asyncio.wait(users, timeout=0.2)
        for user in users:
            user.cancel()
        await asyncio.gather(*users, return_exceptions=True)

    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(share.acquire(timeout=1))
