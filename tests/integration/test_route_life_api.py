"""The endpoints of a route's life: pause, resume, health, test, notices."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from functions.domain.notices import Notice, add_notice
from functions.management import route_life as api
from functions.management import routes
from functions.route_delivery.job import Job
from functions.route_delivery.webhook import deliver
from runtime import Context, Event, Message, PubAck, Reject
from tests.support.calls import Caller, Outbox
from tests.support.receiver import Answer, Receiver
from tests.support.webhook_function import WebhookFunction, started


@dataclass
class Delivering(Outbox):
    """Hands what is published to the webhook function, as the stream does."""

    webhook: WebhookFunction | None = None
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    async def publish(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        job = Job.model_validate_json(data)
        self.jobs.append(job)
        if self.webhook is not None:
            event = Event(Message(subject, data, stream="ROUTES"), job)
            delivery = deliver(event, Context(self.webhook.scope))
            self.tasks.append(asyncio.ensure_future(delivery))
        return PubAck("ROUTES", 1, duplicate=False)


@pytest.fixture
async def webhook(postgres_dsn: str) -> AsyncIterator[WebhookFunction]:
    async with started(postgres_dsn) as function:
        yield function


@pytest.fixture
async def caller(webhook: WebhookFunction) -> Caller:
    return Caller(webhook.pool, Delivering(webhook=webhook))


def route(route_id: str, **fields: Any) -> dict[str, Any]:
    return {"tenant_id": "test", "route_id": route_id, **fields}


async def test_a_paused_route_says_so_and_is_resumed(
    webhook: WebhookFunction, caller: Caller
) -> None:
    wanted = route(await webhook.add_route("http://localhost/"))
    new = await caller.ask(api.get_route_health, **wanted)
    assert (new.state, new.is_enabled, new.is_paused) == ("unknown", True, False)
    paused = await caller.ask(api.pause_route, **wanted)
    assert paused.is_paused
    await webhook.deliver(wanted["route_id"])
    again = await caller.ask(api.pause_route, **wanted)
    assert (again.paused_at, again.held_jobs) == (paused.paused_at, 1)
    resumed = await caller.ask(api.resume_route, **wanted)
    assert (resumed.is_paused, resumed.paused_at) == (False, None)


async def test_another_tenant_sees_and_changes_nothing(
    webhook: WebhookFunction, caller: Caller
) -> None:
    wanted = route(await webhook.add_route("http://localhost/"), tenant_id="other")
    for endpoint in (api.get_route_health, api.pause_route, api.resume_route):
        assert await caller.refuse(endpoint, **wanted) == ("ROUTE_NOT_FOUND", 404)
    assert await caller.refuse(api.test_route, **wanted) == ("ROUTE_NOT_FOUND", 404)
    assert (await caller.ask(api.list_notices, tenant_id="other")).items == []


async def test_the_health_of_a_failing_endpoint_is_shown(
    webhook: WebhookFunction, caller: Caller
) -> None:
    async with Receiver(Answer(500), Answer(503), Answer(200)) as receiver:
        wanted = route(await webhook.add_route(receiver.url))
        for number in range(2):
            with pytest.raises(Exception, match="the endpoint answered"):
                await webhook.deliver(wanted["route_id"], job_id=f"T-{number}-1-r")
        failing = await caller.ask(api.get_route_health, **wanted)
        await webhook.deliver(wanted["route_id"], job_id="T-3-1-r")
    assert (failing.state, failing.failures, failing.failures_24h) == ("failing", 2, 2)
    assert (failing.last_error_code, failing.last_status_code) == ("HTTP_503", 503)
    assert failing.undelivered_jobs == 2
    shown = await caller.ask(routes.get_route, **wanted)
    [listed] = (await caller.ask(routes.list_routes, tenant_id="test")).items
    assert shown.health is not None
    assert (shown.health.state, shown.health.last_error_code) == ("healthy", "HTTP_503")
    assert listed == shown
    healthy = await caller.ask(api.get_route_health, **wanted)
    assert (healthy.state, healthy.failing_since, healthy.failures) == ("healthy", None, 0)
    assert healthy.last_success_at is not None


async def test_a_test_gives_the_result_of_a_real_delivery(
    webhook: WebhookFunction, caller: Caller
) -> None:
    async with Receiver(Answer(202, body=b"thanks"), Answer(403, body=b"no")) as receiver:
        wanted = route(await webhook.add_route(receiver.url))
        await webhook.pool.execute("UPDATE message_routes SET is_enabled = FALSE")
        passed = await caller.ask(api.test_route, **wanted)
        failed = await caller.ask(api.test_route, **wanted)
    assert (passed.outcome, passed.status_code, passed.response_excerpt) == (
        "delivered",
        202,
        "thanks",
    )
    assert (failed.outcome, failed.error_code) == ("failed", "HTTP_403")
    body = orjson.loads(receiver.requests[0].body)
    assert (body["type"], body["data"]["payload"]["is_test"]) == ("test", True)
    assert receiver.requests[0].headers["webhook-signature"].startswith("v1,")
    assert receiver.requests[0].headers["webhook-id"] == passed.job_id


async def test_a_test_that_nobody_delivers_in_time_is_pending(webhook: WebhookFunction) -> None:
    caller = Caller(webhook.pool, Delivering())
    wanted = route(await webhook.add_route("http://localhost/"), wait_s=0.05)
    assert (await caller.ask(api.test_route, **wanted)).outcome == "pending"


async def test_notices_are_listed_newest_first_and_filtered(
    webhook: WebhookFunction, caller: Caller
) -> None:
    for number, kind in enumerate(("endpoint_failing", "job_given_up", "endpoint_failing")):
        await add_notice(webhook.pool, Notice("test", kind, f"{number}", {"n": number}))
    await add_notice(webhook.pool, Notice("test", "job_given_up", "1", {}))
    first = await caller.ask(api.list_notices, tenant_id="test", limit=2)
    rest = await caller.ask(api.list_notices, tenant_id="test", limit=2, cursor=first.next_cursor)
    assert [notice.data["n"] for notice in (*first.items, *rest.items)] == [2, 1, 0]
    given_up = await caller.ask(api.list_notices, tenant_id="test", kind="job_given_up")
    assert [(notice.data["n"], notice.count) for notice in given_up.items] == [(1, 2)]


async def test_a_person_who_disables_a_disabled_route_keeps_it_so_and_its_jobs_are_refused(
    webhook: WebhookFunction, caller: Caller
) -> None:
    wanted = route(await webhook.add_route("http://localhost/"))
    await webhook.pool.execute(
        "UPDATE message_routes SET is_enabled = FALSE, disabled_reason = 'ENDPOINT_FAILING'"
    )
    await webhook.deliver(wanted["route_id"])
    assert (await caller.ask(api.get_route_health, **wanted)).held_jobs == 1
    await caller.ask(routes.update_route, **wanted, is_enabled=False)
    health = await caller.ask(api.get_route_health, **wanted)
    assert (health.is_enabled, health.disabled_reason) == (False, None)
    with pytest.raises(Reject, match="ROUTE_DISABLED"):
        await webhook.deliver(wanted["route_id"])
