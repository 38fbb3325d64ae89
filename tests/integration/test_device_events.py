"""Events of devices become jobs of the routes that name them, once for each event and route."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
import pytest
import structlog

from functions.domain.delivery_counts import REFUSED_LETTER_BYTES
from functions.domain.device_events import DeviceEvent, NewEvent, add_events
from functions.domain.job_bounds import TENANT_BACKLOG_FULL, JobBounds, JobLimits
from functions.presence.announcing import Transition, event_of
from functions.route_delivery.device_events import route_device_events
from functions.route_delivery.platform_jobs import PlatformJobs
from runtime import Batch, Context, Event, Message, Reject
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.calls import Outbox
from tests.support.evaluation import EvaluatorHere

AT = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


@dataclass
class Events:
    """The function on a new database."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope

    async def add_route(
        self, topic_filter: str, payload_filter: str | None = None, *, tenant: str = "test"
    ) -> str:
        return str(
            await self.pool.fetchval(
                "INSERT INTO message_routes"
                " (tenant_id, name, topic_filter, destination_type, payload_filter)"
                " VALUES ($3, gen_random_uuid()::text, $1, 'webhook', $2) RETURNING id",
                *(topic_filter, payload_filter, tenant),
            )
        )

    async def make(self, version: int = 2, **changes: Any) -> Message:
        """An event from the outbox, as the stream would deliver it."""
        payload = {"command_id": "c1", "status": "sent", "version": version, "at": AT}
        event = NewEvent("test", "d.1", "commands/state", f"command-7-{version}", payload)
        async with self.pool.acquire() as connection, connection.transaction():
            await add_events(connection, [event])
            row = await connection.fetchrow("DELETE FROM delivery_outbox RETURNING subject, body")
        assert row is not None
        message = Message(row["subject"], row["body"], stream="DEVICE_EVENTS", sequence=version)
        return replace(message, **changes)

    async def route(self, *messages: Message) -> list[Any]:
        """Call the function; how each message is settled, None if it is done."""
        events = [Event(each, DeviceEvent.model_validate_json(each.data)) for each in messages]
        batch = Batch(events)
        await route_device_events(batch, Context(self.scope))
        return [batch.steered.get(id(each)) for each in events]

    async def jobs(self) -> list[tuple[str, dict[str, Any]]]:
        rows = await self.pool.fetch("SELECT subject, content FROM delivery_jobs ORDER BY job_id")
        return [(row["subject"], orjson.loads(row["content"])) for row in rows]


@pytest.fixture
async def events(postgres_dsn: str) -> AsyncIterator[Events]:
    pool = await open_pool(postgres_dsn, max_size=2)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test'), ('other')")
    scope = Scope("test", None, Outbox(), {"postgres": pool}, structlog.get_logger())
    scope.state = PlatformJobs(EvaluatorHere(), JobBounds(JobLimits(), structlog.get_logger()))
    yield Events(pool, scope)
    await pool.close()


async def test_an_event_becomes_one_job_for_each_route_that_names_it(events: Events) -> None:
    wanting = await events.add_route("tenant/+/device/+/commands/#")
    chosen = await events.add_route(
        "tenant/test/device/d.1/commands/state", "payload.status == 'sent'"
    )
    await events.add_route("tenant/test/device/+/commands/state", "payload.status == 'failed'")
    await events.add_route("#")
    await events.add_route("tenant/test/device/+/telemetry")
    await events.add_route("tenant/+/device/+/commands/#", tenant="other")
    message = await events.make()
    # Stored twice by a hand-over that was killed, and delivered twice.
    assert await events.route(message, replace(message, sequence=9)) == [None, None]
    assert await events.route(message) == [None]
    assert await events.pool.fetchval("SELECT count(*) FROM delivery_outbox") == 2
    jobs = await events.jobs()
    assert {subject for subject, _ in jobs} == {"routes.test.webhook"}
    assert {job["job_id"] for _, job in jobs} == {
        f"command-7-2-{each}" for each in (wanting, chosen)
    }
    job = jobs[0][1]
    assert (job["topic"], job["msg_type"]) == (
        *("tenant/test/device/d.1/commands/state", "commands/state"),
    )
    assert (job["device_id"], job["payload"]["status"]) == ("d.1", "sent")


async def test_presence_goes_to_routes_that_name_it(events: Events) -> None:
    wanting = await events.add_route("tenant/test/device/+/presence", "payload.status == 'offline'")
    for topic_filter in (
        "tenant/test/#",
        "tenant/test/device/d.1/+",
        "tenant/+/device/+/commands/#",
    ):
        await events.add_route(topic_filter)
    at = Transition("test", "d.1", 1, "online", "connected", AT, AT)
    for transition in (at, at._replace(number=2, status="offline", reason="silent")):
        async with events.pool.acquire() as connection, connection.transaction():
            await add_events(connection, [event_of(transition)])
            row = await connection.fetchrow("DELETE FROM delivery_outbox RETURNING subject, body")
        assert row is not None
        message = Message(row["subject"], row["body"], stream="DEVICE_EVENTS", sequence=1)
        assert await events.route(message) == [None]

    [(_, job)] = await events.jobs()
    assert job["route_id"] == wanting
    assert (job["topic"], job["msg_type"]) == ("tenant/test/device/d.1/presence", "presence")
    assert job["payload"] == {
        "status": "offline",
        "reason": "silent",
        "at": AT.isoformat(),
        "last_seen_at": AT.isoformat(),
        "number": 2,
    }


async def test_routes_that_count_are_bounded(events: Events) -> None:
    for _ in range(103):
        await events.add_route("tenant/test/device/+/commands/state")
    await events.route(await events.make())
    assert len(await events.jobs()) == 100


async def test_an_event_on_another_devices_subject_is_rejected(events: Events) -> None:
    await events.add_route("tenant/test/device/+/commands/state")
    forged = await events.make(3, subject="device_events.test.d2.commands.state")
    good = await events.make(4)
    rejected, done = await events.route(forged, good)
    assert isinstance(rejected, Reject)
    assert rejected.code == "TENANT_MISMATCH"
    assert done is None
    assert [job["payload"]["version"] for _, job in await events.jobs()] == [4]


async def test_jobs_of_events_are_within_their_tenants_bounds(events: Events) -> None:
    limits = JobLimits(waiting_bytes=3000, given_up_bytes=5000)
    bounds = JobBounds(limits, structlog.get_logger())
    events.scope.state = PlatformJobs(EvaluatorHere(), bounds)
    for _ in range(5):
        await events.add_route("tenant/test/device/+/commands/state")
    for message in [await events.make(version) for version in range(1, 5)]:
        await events.route(message)
    rows = await events.pool.fetch(
        "SELECT status, refusal, subject, octet_length(content) AS size FROM delivery_jobs"
    )
    waiting = [row["size"] for row in rows if row["status"] == "waiting"]
    refused = [row for row in rows if row["status"] == "refused"]
    assert len(rows) == 20
    assert sum(waiting) <= 3000 < sum(waiting) + max(waiting)
    assert {row["refusal"] for row in refused} == {TENANT_BACKLOG_FULL}
    # The rest is counted only.
    letters = [row["size"] + REFUSED_LETTER_BYTES for row in refused if row["subject"] is not None]
    assert 0 < sum(letters) <= 5000 < sum(letters) + max(letters)
    notices = await events.pool.fetch("SELECT kind, data ->> 'code' AS code FROM notices")
    assert [tuple(row) for row in notices] == [("jobs_refused", TENANT_BACKLOG_FULL)]
