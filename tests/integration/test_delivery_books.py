"""The books of delivery: exact at every moment, whoever changes jobs."""

import asyncio
import random
from collections.abc import AsyncIterator

import asyncpg
import orjson
import pytest
import structlog

from functions.domain.delivery_counts import DeliveryCounts, counts_of_all, counts_of_tenants
from functions.domain.job_bounds import TENANT_BACKLOG_FULL, TOO_MANY_JOBS
from functions.domain.outbox import NewJob, add_jobs
from functions.management.delivery_books import get_books, get_tenant_books
from functions.route_delivery.dead_jobs import read_dead_job, record_dead_jobs
from functions.route_delivery.outbox import fold_counts
from runtime import Batch, Context, Event, Message
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.ingest import GOOD, raw, register, started

Pool = asyncpg.Pool
STATES = ("waiting", "failing", "held", "delivered", "refused", "dead")


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator["Pool[asyncpg.Record]"]:
    opened = await open_pool(postgres_dsn, max_size=5)
    yield opened
    await opened.close()


async def make(pool: "Pool[asyncpg.Record]", tenant: str, *jobs: str, size: int = 10) -> None:
    async with pool.acquire() as connection, connection.transaction():
        content = b"x" * size
        await add_jobs(
            connection,
            [
                NewJob(tenant, job, "r", "webhook", content, None, "routes.t.webhook")
                for job in jobs
            ],
        )


async def recount(pool: "Pool[asyncpg.Record]") -> DeliveryCounts:
    """The counts from the jobs themselves."""
    row = await pool.fetchrow(
        "SELECT count(*), count(*) FILTER (WHERE status IN ('waiting', 'failing', 'held')),"
        " count(*) FILTER (WHERE status = 'delivered'), count(*) FILTER (WHERE status = 'refused'),"
        " count(*) FILTER (WHERE status = 'dead'),"
        " coalesce(sum(size_bytes) FILTER (WHERE status IN ('waiting', 'failing', 'held')), 0),"
        " coalesce(sum(size_bytes) FILTER (WHERE status IN ('refused', 'dead')), 0)"
        " FROM delivery_jobs"
    )
    assert row is not None
    return DeliveryCounts(*row)


async def test_books_agree_with_the_jobs_through_every_change_and_every_folding(
    pool: "Pool[asyncpg.Record]",
) -> None:
    chance = random.Random(11)  # noqa: S311 - not for secrets
    for step in range(60):
        tenant = chance.choice("abc")
        match chance.randrange(4):
            case 0:
                names = [f"{step}-{n}" for n in range(chance.randrange(1, 9))]
                await make(pool, tenant, *names, size=chance.randrange(1, 99))
            case 1:
                await pool.execute(
                    "UPDATE delivery_jobs SET status = (ARRAY['waiting', 'failing', 'held',"
                    " 'delivered', 'refused', 'dead'])[1 + (random() * 5)::int], size_bytes ="
                    " size_bytes + (random() * 3)::int WHERE tenant_id = $1 AND random() < 0.5",
                    tenant,
                )
            case 2:
                await pool.execute("DELETE FROM delivery_jobs WHERE random() < 0.1")
            case _:
                await fold_counts(pool)
        counts = await counts_of_all(pool)
        assert counts == await recount(pool)
    of_tenants = await counts_of_tenants(pool, "abc")
    assert sum(one.jobs for one in of_tenants.values()) == counts.jobs
    await fold_counts(pool)
    assert await pool.fetchval("SELECT count(*) FROM delivery_count_changes") == 0
    assert await counts_of_all(pool) == counts


async def test_books_are_balanced_at_every_moment_while_hosts_make_and_end_jobs(
    pool: "Pool[asyncpg.Record]",
) -> None:
    end = asyncio.Event()

    async def work(tenant: str) -> None:
        for number in range(40):
            await make(pool, tenant, *(f"{number}-{n}" for n in range(20)))
            await pool.execute(
                "UPDATE delivery_jobs SET status = 'delivered' WHERE tenant_id = $1"
                " AND job_id LIKE $2",
                tenant,
                f"{number}-1%",
            )

    async def look() -> int:
        looks = 0
        while not end.is_set():
            books = await get_books(Event(Message("s", b""), None), _context(pool))  # type: ignore[arg-type]
            assert books.is_balanced
            await fold_counts(pool)
            looks += 1
        return looks

    looking = asyncio.create_task(look())
    await asyncio.gather(work("a"), work("b"))
    end.set()
    assert await looking > 3
    counts = await counts_of_all(pool)
    assert counts == await recount(pool)
    assert (counts.jobs, counts.delivered) == (1600, 880)


async def test_the_endpoints_say_the_books_of_one_tenant_and_of_all(
    pool: "Pool[asyncpg.Record]",
) -> None:
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('a'), ('b'), ('idle')")
    await make(pool, "a", *STATES)
    for state in STATES:
        await pool.execute("UPDATE delivery_jobs SET status = $1 WHERE job_id = $1", state)
    await make(pool, "b", "1", "2")
    await pool.execute("DELETE FROM delivery_outbox WHERE queue = 'a'")
    api = Caller(pool)
    mine = await api.ask(get_tenant_books, tenant_id="a")
    shown = mine.model_dump(exclude={"read_at"})
    assert shown == {
        "jobs": 6,
        "delivered": 1,
        "refused": 1,
        "dead": 1,
        "waiting": 3,
        "waiting_bytes": 30,
        "given_up_bytes": 20,
        "in_outbox": 0,
        "oldest_in_outbox_at": None,
        "is_balanced": True,
    }
    everything = await api.ask(get_books)
    assert (everything.jobs, everything.waiting, everything.in_outbox) == (8, 5, 2)
    assert everything.oldest_in_outbox_at is not None
    assert (await api.ask(get_tenant_books, tenant_id="idle")).jobs == 0
    assert await api.refuse(get_tenant_books, tenant_id="nobody") == ("TENANT_NOT_FOUND", 404)


async def test_a_jobs_dead_letter_marks_it_dead_and_nothing_else(
    pool: "Pool[asyncpg.Record]",
) -> None:
    await make(pool, "t", *STATES)
    for state in STATES:
        await pool.execute("UPDATE delivery_jobs SET status = $1 WHERE job_id = $1", state)
    letters = [letter(state) for state in STATES]
    letters += [letter("none"), letter("waiting", tenant="u"), Message("dead_letters.x", b"?")]
    await record_dead_jobs(Batch([Event(one, one.data) for one in letters]), _context(pool))
    now = await pool.fetch("SELECT job_id, status FROM delivery_jobs ORDER BY job_id")
    assert {row["job_id"]: row["status"] for row in now} == {
        "waiting": "dead",
        "failing": "dead",
        "held": "dead",
        "delivered": "delivered",
        "refused": "refused",
        "dead": "dead",
    }


def test_a_dead_letter_of_another_stream_or_of_another_tenants_subject_is_no_dead_job() -> None:
    assert read_dead_job(letter("j")) == ("t", "j")
    assert read_dead_job(letter("j", stream="TELEMETRY")) is None
    assert read_dead_job(letter("j", subject="routes.u.webhook")) is None
    assert read_dead_job(letter("a b")) is None


async def test_jobs_over_a_tenants_bound_are_refused_counted_and_told_and_rows_go_on(
    postgres_dsn: str,
) -> None:
    limits = {"max_jobs_per_message": 2, "max_waiting_bytes": 1000, "max_given_up_bytes": 700}
    async with started(postgres_dsn, None, **limits) as ingest:  # type: ignore[arg-type]
        await register(ingest.pool)
        for name in ("one", "two", "three"):
            await ingest.pool.execute(
                "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type)"
                " VALUES ('test', $1, '#', 'webhook')",
                name,
            )
        await ingest.restart()
        await ingest.run(raw(1, {**GOOD, "metrics": {"temp": 1}}))
        await ingest.run(*(raw(n) for n in range(2, 5)))
        assert await ingest.counts() == (4, 0)
        jobs = await ingest.pool.fetch(
            "SELECT job_id, status, refusal, subject, content IS NOT NULL AS has_content"
            " FROM delivery_jobs ORDER BY length(job_id), job_id"
        )
        assert len(jobs) == 12
        waiting = [job for job in jobs if job["status"] == "waiting"]
        assert len(waiting) == 3
        refusals = {job["refusal"] for job in jobs if job["status"] == "refused"}
        assert refusals == {TOO_MANY_JOBS, TENANT_BACKLOG_FULL}
        counted = [job for job in jobs if job["status"] == "refused" and job["subject"] is None]
        assert counted
        assert not any(job["has_content"] for job in counted)
        queued = await ingest.pool.fetchval("SELECT count(*) FROM delivery_outbox")
        assert queued == len(jobs) - len(counted)
        told = await ingest.pool.fetch("SELECT kind, data::text FROM notices")
        codes = sorted(orjson.loads(row["data"])["code"] for row in told)
        assert codes == [TENANT_BACKLOG_FULL, TOO_MANY_JOBS]


def letter(
    job: str, *, tenant: str = "t", stream: str = "ROUTES", subject: str | None = None
) -> Message:
    headers = {
        "Runtime-Stream": stream,
        "Runtime-Subject": f"routes.{tenant}.webhook" if subject is None else subject,
    }
    body = orjson.dumps({"job_id": job, "tenant_id": tenant, "payload": {}})
    return Message("dead_letters.deliver_webhook", body, headers)


def _context(pool: "Pool[asyncpg.Record]") -> Context:
    log = structlog.stdlib.get_logger()
    return Context(Scope("books", None, None, {"postgres": pool}, log))  # type: ignore[arg-type]
