"""A route's life: paused, disabled, tested, its endpoint's health, and copies of its jobs."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from functions.route_delivery.health_log import SUCCESS_EVERY_S
from functions.route_delivery.retention import RetentionSettings, forget_old_deliveries
from runtime import Context, Reject, Retry
from tests.support.receiver import Answer, Receiver
from tests.support.webhook_function import WebhookFunction, started

OFF = "UPDATE message_routes SET is_enabled = FALSE, paused_at = now()"


@pytest.fixture
async def webhook(postgres_dsn: str) -> AsyncIterator[WebhookFunction]:
    async with started(postgres_dsn) as function:
        yield function


async def jobs(webhook: WebhookFunction) -> dict[str, dict[str, Any]]:
    rows = await webhook.pool.fetch("SELECT * FROM delivery_jobs ORDER BY job_id")
    return {row["job_id"]: dict(row) for row in rows}


async def health(webhook: WebhookFunction) -> dict[str, Any]:
    [row] = await webhook.pool.fetch("SELECT * FROM endpoint_health")
    return dict(row)


async def test_a_paused_route_holds_its_jobs_without_an_attempt(webhook: WebhookFunction) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        await webhook.pool.execute("UPDATE message_routes SET paused_at = now()")
        await webhook.deliver(route_id)
        await webhook.deliver(route_id)
        assert receiver.requests == []
    [held] = (await jobs(webhook)).values()
    assert (held["status"], held["attempts"]) == ("held", 0)
    assert orjson.loads(held["content"])["payload"] == {"metrics": {"temp": 22}}
    assert await webhook.attempts() == []


async def test_a_route_that_a_person_disabled_refuses_its_jobs_and_keeps_them(
    webhook: WebhookFunction,
) -> None:
    route_id = await webhook.add_route("http://localhost/")
    await webhook.pool.execute(OFF)
    with pytest.raises(Reject) as disabled:
        await webhook.deliver(route_id)
    assert disabled.value.code == "ROUTE_DISABLED"
    [refused] = (await jobs(webhook)).values()
    assert (refused["status"], orjson.loads(refused["content"])["job_id"]) == (
        "refused",
        "T-1-1-r",
    )


async def test_a_job_keeps_its_content_until_it_is_delivered(webhook: WebhookFunction) -> None:
    async with Receiver(Answer(500), Answer(200)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        with pytest.raises(Retry):
            await webhook.deliver(route_id)
        [failing] = (await jobs(webhook)).values()
        await webhook.deliver(route_id)
    [delivered] = (await jobs(webhook)).values()
    assert failing["content"] is not None
    assert (delivered["status"], delivered["content"]) == ("delivered", None)


async def test_only_the_copy_that_was_sent_last_is_delivered(webhook: WebhookFunction) -> None:
    replay, later = uuid4(), uuid4()
    async with Receiver(Answer(500), Answer(200)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        with pytest.raises(Retry):
            await webhook.deliver(route_id)
        await webhook.pool.execute(
            "UPDATE delivery_jobs SET status = 'waiting', replay_id = $1", later
        )
        await webhook.deliver(route_id)
        await webhook.deliver(route_id, replay_id=str(replay))
        assert len(receiver.requests) == 1
        await webhook.deliver(route_id, replay_id=str(later))
        assert len(receiver.requests) == 2
    assert await webhook.job_status() == "delivered"


async def test_a_job_that_was_given_up_may_be_redriven_from_any_copy(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(500), Answer(200)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        with pytest.raises(Retry):
            await webhook.deliver(route_id)
        await webhook.pool.execute(
            "UPDATE delivery_jobs SET status = 'dead', replay_id = $1", uuid4()
        )
        await webhook.deliver(route_id)
    assert await webhook.job_status() == "delivered"


async def test_the_health_of_an_endpoint_is_shared_by_its_routes_and_written_with_attempts(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(500), Answer(404), Answer(200)) as receiver:
        routes = [await webhook.add_route(receiver.url) for _ in range(2)]
        for number, route_id in enumerate(routes):
            with pytest.raises(Retry):
                await webhook.deliver(route_id, job_id=f"T-{number}-1-r")
        failing = await health(webhook)
        await webhook.deliver(routes[0], job_id="T-3-1-r")
    assert (failing["failures"], failing["last_error_code"], failing["last_status_code"]) == (
        2,
        "HTTP_404",
        404,
    )
    healthy = await health(webhook)
    assert (healthy["failing_since"], healthy["failures"]) == (None, 0)
    endpoints = await webhook.pool.fetch("SELECT DISTINCT endpoint FROM message_routes")
    assert [row["endpoint"] for row in endpoints] == [healthy["endpoint"]]
    assert "localhost" not in str(healthy)


async def test_a_healthy_endpoint_costs_one_row_in_half_a_minute(webhook: WebhookFunction) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        await webhook.deliver(route_id)
        first = await health(webhook)
        for number in range(5):
            await webhook.deliver(route_id, job_id=f"T-{number}-2-r")
    assert await health(webhook) == first
    assert SUCCESS_EVERY_S == 30.0


async def test_410_disables_every_route_to_the_endpoint_and_tells_the_tenant_once(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(200), Answer(200), Answer(410)) as receiver, Receiver() as other:
        routes = [await webhook.add_route(receiver.url) for _ in range(2)]
        sound = await webhook.add_route(other.url)
        for number, route_id in enumerate([*routes, sound]):
            await webhook.deliver(route_id, job_id=f"T-{number}-1-r")
        with pytest.raises(Reject, match="410"):
            await webhook.deliver(routes[0], job_id="T-1-2-r")
    rows = await webhook.pool.fetch(
        "SELECT id::text, is_enabled, disabled_reason FROM message_routes"
    )
    assert {row["id"]: (row["is_enabled"], row["disabled_reason"]) for row in rows} == {
        routes[0]: (False, "ENDPOINT_GONE"),
        routes[1]: (False, "ENDPOINT_GONE"),
        sound: (True, None),
    }
    [notice] = await webhook.pool.fetch("SELECT kind, data::text FROM notices")
    told = orjson.loads(notice["data"])
    assert (notice["kind"], told["reason"]) == ("endpoint_disabled", "ENDPOINT_GONE")
    assert {route["route_id"] for route in told["routes"]} == set(routes)
    assert "localhost" not in notice["data"]


async def test_a_test_is_sent_once_whatever_the_state_of_the_route(
    webhook: WebhookFunction,
) -> None:
    now = datetime.now(UTC)
    async with Receiver(Answer(200), Answer(500)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        await webhook.pool.execute(OFF)
        await webhook.deliver(route_id, job_id="test-1", is_test=True, stored_at=now)
        await webhook.deliver(route_id, job_id="test-2", is_test=True, stored_at=now)
        old = now - timedelta(minutes=11)
        await webhook.deliver(route_id, job_id="test-3", is_test=True, stored_at=old)
    assert len(receiver.requests) == 2
    assert orjson.loads(receiver.requests[0].body)["type"] == "test"
    attempts = [(a["job_id"], a["outcome"], a["status_code"]) for a in await webhook.attempts()]
    assert attempts == [("test-1", "delivered", 200), ("test-2", "failed", 500)]
    # A failed test is no failure on the way to being disabled, and nothing to send again.
    assert (await health(webhook))["failures"] == 0
    failed = (await jobs(webhook))["test-2"]
    assert (failed["status"], failed["content"]) == ("refused", None)


async def test_a_test_that_is_answered_with_410_disables_nothing(webhook: WebhookFunction) -> None:
    async with Receiver(Answer(410)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        await webhook.deliver(route_id, job_id="test-1", is_test=True, stored_at=datetime.now(UTC))
    [attempt] = await webhook.attempts()
    assert attempt["error_code"] == "ENDPOINT_GONE"
    assert await webhook.pool.fetchval("SELECT is_enabled FROM message_routes")
    assert await webhook.pool.fetchval("SELECT count(*) FROM notices") == 0


async def test_old_jobs_replays_and_endpoints_are_forgotten_but_held_jobs_are_not(
    webhook: WebhookFunction,
) -> None:
    kept = await webhook.add_route("http://localhost/")
    await webhook.pool.execute(
        "INSERT INTO delivery_jobs"
        " (tenant_id, job_id, route_id, destination_type, status, attempts, last_attempt_at)"
        " SELECT 'test', status, 'r', 'webhook', status, 1, now() - interval '99 days'"
        " FROM unnest('{held,dead,delivered}'::text[]) AS status"
    )
    scope = replace(webhook.scope, settings=RetentionSettings())
    await webhook.pool.execute(
        "INSERT INTO delivery_replays"
        " (tenant_id, replay_id, route_id, kind, rate_per_s, phase, status, finished_at)"
        " SELECT 'test', gen_random_uuid(), gen_random_uuid(), 'failed', 1, 'failed', 'done',"
        " now() - days * interval '1 day' FROM unnest('{29,31}'::integer[]) AS days"
    )
    await webhook.pool.execute(
        "INSERT INTO endpoint_health (tenant_id, endpoint, last_success_at) SELECT 'test', days,"
        " now() - days::integer * interval '1 day' FROM unnest('{1,3,99}'::text[]) AS days"
    )
    await webhook.pool.execute("UPDATE message_routes SET endpoint = '99' WHERE id = $1", kept)
    await forget_old_deliveries(Context(scope))
    assert list(await jobs(webhook)) == ["held"]
    assert await webhook.pool.fetchval("SELECT count(*) FROM delivery_replays") == 1
    left = await webhook.pool.fetch("SELECT endpoint FROM endpoint_health ORDER BY endpoint")
    assert [row["endpoint"] for row in left] == ["1", "99"]
