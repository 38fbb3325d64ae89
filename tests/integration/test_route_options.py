"""What a route says of its delivery, at a real receiver and with a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
import structlog
from standardwebhooks import Webhook

from functions.outbound.webhook_sender import WebhookSettings
from functions.route_delivery.job import Job
from functions.route_delivery.webhook import deliver, start, stop
from runtime import Context, Event, Message, Reject, Retry
from runtime.context import RetrySchedule, Scope
from runtime.resource.postgres import open_pool
from tests.support.receiver import Answer, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SETTINGS = WebhookSettings(allowed_networks="127.0.0.0/8, ::1/128", timeout_s=5.0)


@dataclass
class Delivering:
    """A started webhook function, and a route with options to one receiver."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope
    receiver: Receiver
    route_id: str = ""

    async def route(self, **options: Any) -> None:
        self.route_id = str(
            await self.pool.fetchval(
                "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type,"
                " destination_config, delivery_options)"
                " VALUES ('test', gen_random_uuid()::text, 'tenant/#', 'webhook',"
                " $1::text::jsonb, $2::text::jsonb) RETURNING id",
                json.dumps({"url": self.receiver.url, "secret": SECRET}),
                json.dumps(options),
            )
        )

    async def deliver(self, payload: Any = None, *, attempt: int = 1) -> Context:
        job = Job(
            job_id="T-1-1-r",
            route_id=self.route_id,
            tenant_id="test",
            device_id="dev1",
            topic="tenant/test/device/dev1/telemetry",
            msg_type="telemetry",
            payload={"metrics": {"temp": 22}} if payload is None else payload,
            stored_at=datetime(2026, 8, 1, tzinfo=UTC),
        )
        message = Message("routes.test.webhook", b"", stream="ROUTES", sequence=1)
        context: Context = Context(self.scope, message, attempt=attempt)
        self.context = context
        await deliver(Event(message, job), context)
        return context

    async def logged(self) -> list[tuple[str, str | None]]:
        rows = await self.pool.fetch("SELECT * FROM delivery_attempts ORDER BY attempt")
        return [(row["outcome"], row["error_code"]) for row in rows]


@pytest.fixture
async def delivering(postgres_dsn: str) -> AsyncIterator[Delivering]:
    pool = await open_pool(postgres_dsn, max_size=4)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test')")
    scope = Scope(
        "deliver_webhook",
        SETTINGS,
        None,  # type: ignore[arg-type] # deliveries publish nothing
        {"postgres": pool},
        structlog.get_logger(),
    )
    scope.state = await start(Context(scope))
    async with Receiver(Answer(500), Answer(204, body=b"")) as receiver:
        yield Delivering(pool, scope, receiver)
    await stop(Context(scope))
    await pool.close()


async def test_a_failed_attempt_is_judged_by_the_routes_own_schedule(
    delivering: Delivering,
) -> None:
    await delivering.route(retry_delays_s=[60, 600])

    with pytest.raises(Retry, match="HTTP_500"):
        await delivering.deliver()

    assert delivering.context.retry_schedule == RetrySchedule((60.0, 600.0))
    # The next attempt is made by the schedule that the route has then.
    await delivering.route()
    assert (await delivering.deliver(attempt=2)).retry_schedule is None
    assert await delivering.logged() == [("failed", "HTTP_500"), ("delivered", None)]


async def test_an_attempt_ends_by_the_routes_own_time_limit(delivering: Delivering) -> None:
    async with Receiver(Answer(held=asyncio.Event())) as silent:
        delivering.receiver = silent
        await delivering.route(timeout_s=1)
        with pytest.raises(Retry, match="TIMEOUT"):
            await delivering.deliver()
    [spent_ms] = [
        row["duration_ms"]
        for row in await delivering.pool.fetch("SELECT duration_ms FROM delivery_attempts")
    ]
    assert 900 <= spent_ms < 4000


async def test_a_route_sends_what_its_transformation_makes(delivering: Delivering) -> None:
    await delivering.route(transformation={"fields": {"c": "metrics.temp", "who": "device_id"}})
    with pytest.raises(Retry):
        await delivering.deliver()
    await delivering.route(
        transformation={"value": "{'celsius': metrics.temp}", "replaces": "body"}
    )
    await delivering.deliver(attempt=2)

    first, second = delivering.receiver.requests
    body = Webhook(SECRET).verify(first.body, first.headers)
    assert body["data"]["payload"] == {"c": 22, "who": "dev1"}
    assert second.body == b'{"celsius":22}'
    assert Webhook(SECRET).verify(second.body, second.headers) == {"celsius": 22}


async def test_a_transformation_that_fails_is_a_refused_attempt_and_nothing_is_sent(
    delivering: Delivering,
) -> None:
    await delivering.route(transformation={"fields": {"p": "metrics.pressure"}})

    with pytest.raises(Reject) as refused:
        await delivering.deliver()

    assert refused.value.code == "TRANSFORMATION_FAILED"
    assert "the field 'p' of a transformation: the message lacks a field" in refused.value.reason
    assert delivering.receiver.requests == []
    assert await delivering.logged() == [("refused", "TRANSFORMATION_FAILED")]
    # Replayed, after the route was mended.
    await delivering.route(transformation={"fields": {"t": "metrics.temp"}})
    with pytest.raises(Retry):
        await delivering.deliver()


async def test_options_that_nobody_can_read_refuse_the_job(delivering: Delivering) -> None:
    await delivering.route(retry_delays_s=[-1])

    with pytest.raises(Reject, match="delivery options cannot be read"):
        await delivering.deliver()

    assert await delivering.logged() == [("refused", "ROUTE_CONFIG_INVALID")]
