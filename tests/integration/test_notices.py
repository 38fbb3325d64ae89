"""Notices to tenants: from the row to the stream, and from the stream to routes."""

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson
import pytest
import structlog

from functions.domain.job_bounds import JobBounds, JobLimits
from functions.domain.notices import Notice, add_notice
from functions.route_delivery.dead_jobs import record_dead_jobs
from functions.route_delivery.notice_routing import PublishedNotice, route_notices
from functions.route_delivery.notices import NoticeSettings, publish_notices
from functions.route_delivery.platform_jobs import PlatformJobs
from runtime import Batch, Context, Event, Message, Reject
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.evaluation import EvaluatorHere

STORED_AT_NS = 1_785_585_600_123_456_789


@dataclass
class Notices:
    """The two functions on new streams and a new database."""

    broker: Broker
    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope

    async def add(self, kind: str = "endpoint_failing", key: str = "k", **data: Any) -> None:
        await add_notice(self.pool, Notice("test", kind, key, data))

    async def publish(self) -> None:
        await publish_notices(Context(self.scope))

    async def route(self, sequence: int = 1, **changes: Any) -> None:
        subject, data = (await self.stored("NOTICES"))[sequence - 1]
        subject = changes.pop("subject", subject)
        message = Message(
            subject, b"", stream="NOTICES", sequence=sequence, stored_at_ns=STORED_AT_NS
        )
        notice = PublishedNotice.model_validate(data | changes)
        await route_notices(Event(message, notice), Context(self.scope, message))

    async def add_route(self, topic_filter: str, payload_filter: str | None = None) -> str:
        return str(
            await self.pool.fetchval(
                "INSERT INTO message_routes"
                " (tenant_id, name, topic_filter, destination_type, payload_filter)"
                " VALUES ('test', gen_random_uuid()::text, $1, 'webhook', $2) RETURNING id",
                topic_filter,
                payload_filter,
            )
        )

    async def jobs(self) -> list[tuple[str, dict[str, Any]]]:
        """Subject and content of the jobs that wait to be published."""
        rows = await self.pool.fetch("SELECT subject, content FROM delivery_jobs")
        return [(row["subject"], orjson.loads(row["content"])) for row in rows]

    async def stored(self, stream: str) -> list[tuple[str, dict[str, Any]]]:
        state = (await self.broker.api(f"STREAM.INFO.{stream}", None))["state"]
        messages = [
            (await self.broker.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
            for sequence in range(1, state["last_seq"] + 1)
        ]
        return [
            (each["subject"], orjson.loads(base64.b64decode(each["data"]))) for each in messages
        ]


@pytest.fixture
async def notices(broker: Broker, postgres_dsn: str) -> AsyncIterator[Notices]:
    pool = await open_pool(postgres_dsn, max_size=2)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test')")
    await broker.api("STREAM.CREATE.NOTICES", {"name": "NOTICES", "subjects": ["notices.*.*"]})
    log = structlog.get_logger()
    scope = Scope("notices", NoticeSettings(), broker, {"postgres": pool}, log)
    scope.state = PlatformJobs(EvaluatorHere(), JobBounds(JobLimits(waiting_bytes=1000), log))
    yield Notices(broker, pool, scope)
    await broker.api("STREAM.DELETE.NOTICES", None)
    await pool.close()


async def test_a_notice_is_published_once_however_often_it_happens(notices: Notices) -> None:
    for _ in range(3):
        await notices.add(percent=50)
    await notices.publish()
    await notices.publish()
    [(subject, body)] = await notices.stored("NOTICES")
    assert subject == "notices.test.endpoint_failing"
    assert body["data"].pop("created_at")
    assert body["data"] == {"percent": 50}
    assert await notices.pool.fetchval("SELECT count FROM notices") == 3


async def test_a_crash_before_the_row_is_marked_stores_no_second_notice(notices: Notices) -> None:
    await notices.add()
    await notices.publish()
    await notices.pool.execute("UPDATE notices SET published_at = NULL")
    await notices.publish()
    assert len(await notices.stored("NOTICES")) == 1


async def test_old_notices_are_forgotten_once_they_are_published(notices: Notices) -> None:
    await notices.add()
    await notices.pool.execute("UPDATE notices SET created_at = now() - interval '31 days'")
    await notices.publish()
    assert await notices.pool.fetchval("SELECT count(*) FROM notices") == 0
    assert len(await notices.stored("NOTICES")) == 1


async def test_a_notice_becomes_a_job_only_for_routes_of_notices(notices: Notices) -> None:
    wanting = await notices.add_route("tenant/test/notices/#")
    chosen = await notices.add_route("tenant/+/notices/endpoint_failing", "payload.percent >= 50")
    for topic_filter, payload_filter in (
        ("#", None),
        ("tenant/test/#", None),
        ("tenant/test/+/endpoint_failing", None),
        ("tenant/test/notices/job_given_up", None),
        ("tenant/test/notices/#", "payload.percent > 50"),
        ("tenant/test/notices/#", "payload.absent"),
    ):
        await notices.add_route(topic_filter, payload_filter)
    await notices.add(percent=50)
    await notices.publish()
    await notices.route()
    await notices.route()
    jobs = await notices.jobs()
    assert {subject for subject, _ in jobs} == {"routes.test.webhook"}
    assert {job["route_id"] for _, job in jobs} == {wanting, chosen}
    assert len(jobs) == 2
    job = jobs[0][1]
    assert job["topic"] == "tenant/test/notices/endpoint_failing"
    assert job["payload"]["percent"] == 50
    assert job["job_id"] == f"NOTICES-1-{STORED_AT_NS}-{job['route_id']}"


async def test_a_notice_about_the_delivery_of_notices_becomes_no_job(notices: Notices) -> None:
    await notices.add_route("tenant/test/notices/#")
    await notices.add()
    await notices.publish()
    await notices.route(is_routed=False)
    assert await notices.jobs() == []


async def test_a_notice_in_another_tenants_name_is_refused(notices: Notices) -> None:
    await notices.add()
    await notices.publish()
    with pytest.raises(Reject, match="another tenant"):
        await notices.route(subject="notices.other.endpoint_failing")


async def test_given_up_jobs_of_a_route_are_one_notice_and_each_is_dead(notices: Notices) -> None:
    letters = []
    for number in range(3):
        job = {
            "job_id": f"T-{number}-1-r",
            "route_id": "r",
            "tenant_id": "test",
            "topic": "tenant/test/device/d/telemetry",
            "payload": {"n": number},
            "stored_at": "2026-08-01T00:00:00Z",
        }
        await notices.pool.execute(
            "INSERT INTO delivery_jobs (tenant_id, job_id, route_id, destination_type, status,"
            " attempts) VALUES ('test', $1, 'r', 'webhook', 'failing', 9)",
            job["job_id"],
        )
        headers = {
            "Runtime-Stream": "ROUTES",
            "Runtime-Subject": "routes.test.webhook",
            "Runtime-Code": "ATTEMPTS_EXHAUSTED",
        }
        message = Message("dead_letters.deliver_webhook", orjson.dumps(job), headers)
        letters.append(Event(message, message.data))
    await record_dead_jobs(Batch(letters[:2]), Context(notices.scope))
    await record_dead_jobs(Batch(letters[2:]), Context(notices.scope))
    [notice] = await notices.pool.fetch("SELECT kind, count, data::text FROM notices")
    assert (notice["kind"], notice["count"]) == ("job_given_up", 3)
    assert orjson.loads(notice["data"])["payload"] == {"n": 0}
    states = await notices.pool.fetch("SELECT DISTINCT status FROM delivery_jobs")
    assert [row["status"] for row in states] == ["dead"]


async def test_jobs_of_notices_are_within_their_tenants_bounds(notices: Notices) -> None:
    for _ in range(8):
        await notices.add_route("tenant/test/notices/#")
    await notices.add()
    await notices.publish()
    await notices.route()
    size = "SELECT sum(octet_length(content)) FROM delivery_jobs WHERE status = 'waiting'"
    assert 0 < await notices.pool.fetchval(size) <= 1000
    # It is told of once; that its own jobs are refused makes no further notice.
    for sequence in (2, 3):
        await notices.publish()
        if len(await notices.stored("NOTICES")) >= sequence:
            await notices.route(sequence)
    kinds = await notices.pool.fetch("SELECT kind, count FROM notices ORDER BY created_at")
    assert [row["kind"] for row in kinds] == ["endpoint_failing", "jobs_refused"]
