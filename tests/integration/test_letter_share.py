"""Jobs of one tenant that are given up leave dead letters only up to its share of them."""

from collections import Counter
from pathlib import Path

import pytest

from functions import route_delivery
from functions.domain.delivery_counts import (
    DEAD_LETTER_BYTES,
    REFUSED_LETTER_BYTES,
    counts_of_tenants,
)
from functions.domain.named_sql import read_queries
from functions.domain.outbox import NewJob, add_jobs
from functions.route_delivery.webhook import start, stop
from runtime import Context, Reject, Retry
from tests.support import webhook_function
from tests.support.receiver import Answer, Receiver
from tests.support.webhook_function import SETTINGS, WebhookFunction, started

SHARE_BYTES = 12_000
DEAD_JOBS = Path(route_delivery.__path__[0]) / "dead_jobs.sql"


async def settle(function: WebhookFunction, route_id: str, number: int) -> str:
    """Deliver a job that is refused: whether it leaves a letter."""
    try:
        await function.deliver(route_id, job_id=f"job-{number}")
    except Reject:
        return "letter"
    return "counted"


async def test_a_route_that_refuses_every_job_leaves_letters_up_to_the_share(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SETTINGS.model_copy(update={"max_given_up_bytes": SHARE_BYTES})
    monkeypatch.setattr(webhook_function, "SETTINGS", small)
    async with started(postgres_dsn) as function:
        # A key that is no base64: every job of the route is refused at once.
        route_id = await function.add_route("http://127.0.0.1:9/hook", secret="whsec_?")
        first = [await settle(function, route_id, number) for number in range(20)]
        await stop(Context(function.scope))
        function.scope.state = await start(Context(function.scope))
        later = [await settle(function, route_id, number) for number in range(20, 23)]

        jobs = await function.pool.fetch(
            "SELECT status, content IS NULL AS is_counted, size_bytes FROM delivery_jobs"
        )
        notices = await function.pool.fetch("SELECT tenant_id, kind, data FROM notices")

    assert first == ["letter"] * first.count("letter") + ["counted"] * first.count("counted")
    assert {"letter", "counted"} == set(first)
    assert later == ["counted"] * 3  # The share is read from the database after a restart.
    kept = [job for job in jobs if not job["is_counted"]]
    assert {job["status"] for job in jobs} == {"refused"}
    assert len(jobs) == 23
    assert len(kept) == first.count("letter")
    assert sum(job["size_bytes"] for job in jobs) <= SHARE_BYTES
    assert all(job["size_bytes"] > REFUSED_LETTER_BYTES for job in kept)
    [notice] = notices
    assert (notice["tenant_id"], notice["kind"]) == ("test", "jobs_refused")
    assert "TENANT_REFUSED_FULL" in notice["data"]


async def fail(function: WebhookFunction, route_id: str, number: int) -> str:
    """Deliver a job whose attempt fails: whether it is tried again or leaves a letter."""
    try:
        await function.deliver(route_id, job_id=f"job-{number}")
    except Retry:
        return "letter"
    return "counted"


async def mark_dead(function: WebhookFunction, numbers: range) -> None:
    """What `record_dead_jobs` makes of the letters."""
    statement = read_queries(DEAD_JOBS)["mark_dead"]
    jobs = [f"job-{number}" for number in numbers]
    await function.pool.execute(statement, ["test"] * len(jobs), jobs)


async def test_jobs_whose_one_attempt_fails_leave_letters_up_to_the_share(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SETTINGS.model_copy(update={"max_given_up_bytes": 8_000, "breaker_calls": 10_000})
    monkeypatch.setattr(webhook_function, "SETTINGS", small)
    async with started(postgres_dsn) as function, Receiver(Answer(500)) as receiver:
        route_id = await function.add_route(receiver.url)
        options = '{"retry_delays_s": %s}'
        update = "UPDATE message_routes SET delivery_options = $1::text::jsonb"
        await function.pool.execute(update, options % "[60]")
        # An attempt that is not the last one is no matter of the share.
        assert {await fail(function, route_id, number) for number in range(30, 40)} == {"letter"}
        await function.pool.execute("DELETE FROM delivery_jobs")
        await function.pool.execute(update, options % "[]")
        first = [await fail(function, route_id, number) for number in range(10)]
        await mark_dead(function, range(first.count("letter")))
        await stop(Context(function.scope))
        function.scope.state = await start(Context(function.scope))
        later = await fail(function, route_id, 20)
        again = await fail(function, route_id, 0)
        jobs = await function.pool.fetch(
            "SELECT status, content IS NOT NULL AS is_kept, size_bytes FROM delivery_jobs"
            " WHERE job_id <> 'job-0'"
        )
        counts = (await counts_of_tenants(function.pool, ["test"]))["test"]
        attempts = await function.pool.fetchval("SELECT count(*) FROM delivery_attempts")

    letters = first.count("letter")
    assert first == ["letter"] * letters + ["counted"] * (10 - letters)
    assert letters == 3
    assert (later, again) == ("counted", "letter")  # A redriven job counts already.
    assert Counter(job["status"] for job in jobs) == {"dead": 10}
    assert all((job["size_bytes"] > DEAD_LETTER_BYTES) is job["is_kept"] for job in jobs)
    assert counts.given_up_bytes <= 8_000
    assert attempts == 12


async def test_jobs_of_a_deleted_route_leave_letters_up_to_the_share(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SETTINGS.model_copy(update={"max_given_up_bytes": SHARE_BYTES})
    monkeypatch.setattr(webhook_function, "SETTINGS", small)
    async with started(postgres_dsn) as function:
        gone = "00000000-0000-4000-8000-000000000000"
        found = [await settle(function, gone, number) for number in range(20)]
        redriven = {"headers": {"Runtime-Redrives": "1"}}
        with pytest.raises(Reject):
            await function.deliver(gone, job_id="job-0", **redriven)

    assert found == ["letter"] * found.count("letter") + ["counted"] * found.count("counted")
    assert 5 < found.count("letter") < 12


async def test_a_job_that_counts_already_keeps_its_letter_however_full_the_share_is(
    postgres_dsn: str,
) -> None:
    none = SETTINGS.model_copy(update={"max_given_up_bytes": 0})
    async with started(postgres_dsn) as function:
        route_id = await function.add_route("http://127.0.0.1:9/hook", secret="whsec_?")
        assert await settle(function, route_id, 1) == "letter"
        await stop(Context(function.scope))
        function.scope.settings = none
        function.scope.state = await start(Context(function.scope))

        redriven = await settle(function, route_id, 1)
        new = await settle(function, route_id, 2)
        kept = await function.pool.fetch(
            "SELECT job_id FROM delivery_jobs WHERE content IS NOT NULL ORDER BY job_id"
        )

    assert (redriven, new) == ("letter", "counted")
    assert [row["job_id"] for row in kept] == ["job-1"]


async def test_a_job_that_is_only_counted_takes_no_share(postgres_dsn: str) -> None:
    async with started(postgres_dsn) as function:
        route_id = await function.add_route("http://127.0.0.1:9/hook")
        body = b"{}" * 1000
        jobs = [
            NewJob(
                "test", "kept", route_id, "webhook", body, "TOO_MANY_JOBS", "routes.test.webhook"
            ),
            NewJob("test", "counted", route_id, "webhook", body, "TOO_MANY_JOBS", None),
        ]
        async with function.pool.acquire() as connection, connection.transaction():
            await add_jobs(connection, jobs)
        counts = (await counts_of_tenants(function.pool, ["test"]))["test"]

    assert (counts.refused, counts.given_up_bytes) == (2, len(body) + REFUSED_LETTER_BYTES)
