"""Refused jobs of one tenant leave dead letters only up to its share of them."""

import pytest

from functions.domain.delivery_counts import counts_of_tenants
from functions.domain.outbox import NewJob, add_jobs
from functions.route_delivery.webhook import start, stop
from runtime import Context, Reject
from tests.support import webhook_function
from tests.support.webhook_function import SETTINGS, WebhookFunction, started

SHARE_BYTES = 1000


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
        first = [await settle(function, route_id, number) for number in range(10)]
        await stop(Context(function.scope))
        function.scope.state = await start(Context(function.scope))
        later = [await settle(function, route_id, number) for number in range(10, 13)]

        jobs = await function.pool.fetch(
            "SELECT status, content IS NULL AS is_counted, size_bytes FROM delivery_jobs"
        )
        notices = await function.pool.fetch("SELECT tenant_id, kind, data FROM notices")

    assert first == ["letter"] * first.count("letter") + ["counted"] * first.count("counted")
    assert {"letter", "counted"} == set(first)
    assert later == ["counted"] * 3  # The share is read from the database after a restart.
    kept = [job for job in jobs if not job["is_counted"]]
    assert {job["status"] for job in jobs} == {"refused"}
    assert len(jobs) == 13
    assert len(kept) == first.count("letter")
    assert sum(job["size_bytes"] for job in jobs) <= SHARE_BYTES
    [notice] = notices
    assert (notice["tenant_id"], notice["kind"]) == ("test", "jobs_refused")
    assert "TENANT_REFUSED_FULL" in notice["data"]


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

    assert (counts.refused, counts.given_up_bytes) == (2, len(body))
