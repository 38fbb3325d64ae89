"""The health of endpoints in the database: counting, notices, disabling, recovery."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
import structlog

from functions.domain.named_sql import read_queries
from functions.route_delivery import health_watch
from functions.route_delivery.health_watch import HealthSettings, watch_endpoints
from functions.route_delivery.job import Job
from functions.route_delivery.probes import ProbeSettings, probe_endpoints
from runtime import Context, PubAck, Publication
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.calls import Outbox

QUERIES = read_queries(Path(health_watch.__file__).with_name("health.sql"))
ENDPOINT = "e" * 32
AGEING = (
    "UPDATE endpoint_failures SET hour = hour - $1::interval, first_at = first_at - $1,"
    " last_at = last_at - $1",
    "UPDATE endpoint_health SET failing_since = failing_since - $1::interval,"
    " last_failure_at = last_failure_at - $1, last_success_at = last_success_at - $1,"
    " clock_started_at = clock_started_at - $1, disabled_at = disabled_at - $1,"
    " probed_at = probed_at - $1",
)


class Sender(Outbox):
    """Records what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.publications: list[Publication] = []

    async def publish_many(self, publications: Sequence[Publication]) -> list[PubAck]:
        self.publications += publications
        return [PubAck("ROUTES", 1, duplicate=False) for _ in publications]


@dataclass
class Watched:
    """A tenant with one route to one endpoint, and the function that watches it."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope

    async def record(
        self, *, failures: int = 0, success: bool = False, endpoint: str = ENDPOINT
    ) -> None:
        """A batch of attempts."""
        code, status = ("HTTP_500", 500) if failures else (None, None)
        await self.pool.execute(
            QUERIES["record_health"],
            *(["test"], [endpoint], [success], [failures], [code], [status]),
        )

    async def age(self, **span: float) -> None:
        """Let everything that is known have happened earlier."""
        for statement in AGEING:
            await self.pool.execute(statement, timedelta(**span))

    async def fail_for(self, *, days: float) -> None:
        """Let an endpoint have failed for twelve hours, and then for so many days."""
        await self.record(failures=2)
        await self.age(hours=12)
        await self.record(failures=2)
        await self.watch()
        await self.age(days=days)
        await self.record(failures=1)

    async def watch(self) -> None:
        await watch_endpoints(Context(self.scope))

    async def health(self) -> dict[str, Any]:
        [row] = await self.pool.fetch("SELECT * FROM endpoint_health")
        return dict(row)

    async def route(self) -> dict[str, Any]:
        [row] = await self.pool.fetch("SELECT * FROM message_routes")
        return dict(row)

    async def notices(self) -> list[tuple[str, dict[str, Any]]]:
        rows = await self.pool.fetch("SELECT kind, data::text FROM notices ORDER BY created_at")
        return [(row["kind"], orjson.loads(row["data"])) for row in rows]


@pytest.fixture
async def watched(postgres_dsn: str) -> AsyncIterator[Watched]:
    pool = await open_pool(postgres_dsn, max_size=4)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test')")
    await pool.execute(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type, endpoint)"
        " VALUES ('test', 'hook', 'tenant/test/#', 'webhook', $1)",
        ENDPOINT,
    )
    log = structlog.get_logger()
    scope = Scope("watch", HealthSettings(), None, {"postgres": pool}, log)  # type: ignore[arg-type]
    yield Watched(pool, scope)
    await pool.close()


async def test_failures_are_counted_until_one_success(watched: Watched) -> None:
    await watched.record(failures=2)
    await watched.record(failures=3)
    failing = await watched.health()
    assert (failing["failures"], failing["last_error_code"]) == (5, "HTTP_500")
    assert datetime.now(UTC) - failing["failing_since"] < timedelta(minutes=1)
    await watched.record(success=True)
    healthy = await watched.health()
    assert (healthy["failures"], healthy["failing_since"]) == (0, None)
    # The tenant still sees what went wrong last.
    assert healthy["last_error_code"] == "HTTP_500"


async def test_of_a_batch_only_what_came_after_its_success_counts(watched: Watched) -> None:
    await watched.record(failures=7)
    await watched.record(failures=1, success=True)
    assert (await watched.health())["failures"] == 1


async def test_an_endpoint_that_fails_for_a_while_is_not_told_of(watched: Watched) -> None:
    await watched.record(failures=500)
    await watched.age(hours=11)
    await watched.record(failures=500)
    await watched.watch()
    assert (await watched.health())["clock_started_at"] is None
    assert await watched.notices() == []


async def test_each_threshold_is_told_once_and_after_five_days_the_route_is_disabled(
    watched: Watched,
) -> None:
    await watched.fail_for(days=2.5)
    for days in (1.0, 1.0, 0.5):
        await watched.watch()
        await watched.watch()
        await watched.age(days=days)
        await watched.record(failures=1)
    assert (await watched.route())["is_enabled"]
    await watched.watch()
    await watched.watch()
    told = await watched.notices()
    assert [(kind, data["percent"]) for kind, data in told] == [
        ("endpoint_failing", 50),
        ("endpoint_failing", 70),
        ("endpoint_failing", 90),
        ("endpoint_disabled", 100),
    ]
    assert told[0][1]["routes"][0]["name"] == "hook"
    assert told[0][1]["last_error_code"] == "HTTP_500"
    route = await watched.route()
    assert (route["is_enabled"], route["disabled_reason"]) == (False, "ENDPOINT_FAILING")


async def test_one_success_ends_the_clock_and_is_told_only_after_a_notice(watched: Watched) -> None:
    await watched.fail_for(days=2.5)
    await watched.watch()
    await watched.record(success=True)
    await watched.watch()
    await watched.watch()
    kinds = [kind for kind, _ in await watched.notices()]
    assert kinds == ["endpoint_failing", "endpoint_recovered"]
    assert (await watched.health())["told_percent"] == 0


async def test_a_success_of_a_disabled_endpoint_enables_its_route_and_replays_what_failed(
    watched: Watched,
) -> None:
    await watched.pool.execute("UPDATE message_routes SET created_at = now() - interval '1 year'")
    await watched.fail_for(days=5)
    await watched.watch()
    assert not (await watched.route())["is_enabled"]
    await watched.record(success=True)
    await watched.watch()
    route = await watched.route()
    assert (route["is_enabled"], route["disabled_reason"], route["disabled_at"]) == (
        True,
        None,
        None,
    )
    [replay] = await watched.pool.fetch("SELECT * FROM delivery_replays")
    assert (replay["kind"], replay["route_id"]) == ("recover", route["id"])
    assert datetime.now(UTC) - replay["since"] > timedelta(days=5.5)
    kind, data = (await watched.notices())[-1]
    assert (kind, data["was_disabled"]) == ("endpoint_recovered", True)
    assert (await watched.health())["disabled_at"] is None


@pytest.mark.parametrize(("days_old", "disabled_days", "since_days"), [(3, 1, 3), (90, 40, 28)])
async def test_a_recovered_route_gets_nothing_from_before_itself_or_the_log_of_deliveries(
    watched: Watched, days_old: int, disabled_days: int, since_days: int
) -> None:
    await watched.pool.execute(
        "UPDATE message_routes SET created_at = now() - $1::interval", timedelta(days=days_old)
    )
    await watched.fail_for(days=5)
    await watched.watch()
    await watched.age(days=disabled_days)
    await watched.record(success=True)
    await watched.watch()
    since = await watched.pool.fetchval("SELECT since FROM delivery_replays")
    assert (
        timedelta(0) <= datetime.now(UTC) - since - timedelta(days=since_days) < timedelta(hours=1)
    )


async def test_a_person_who_enables_the_route_gives_it_five_new_days(watched: Watched) -> None:
    await watched.fail_for(days=5)
    await watched.watch()
    await watched.pool.execute("UPDATE message_routes SET is_enabled = TRUE")
    assert (await watched.route())["disabled_reason"] is None
    health = await watched.health()
    assert (health["failing_since"], health["clock_started_at"]) == (None, None)
    await watched.record(failures=1)
    await watched.watch()
    assert (await watched.route())["is_enabled"]


async def test_another_destination_is_another_endpoint(watched: Watched) -> None:
    await watched.pool.execute("UPDATE message_routes SET name = 'same'")
    assert (await watched.route())["endpoint"] == ENDPOINT
    await watched.pool.execute('UPDATE message_routes SET destination_config = \'{"url": "x"}\'')
    assert (await watched.route())["endpoint"] is None


async def test_an_endpoint_without_routes_is_forgotten_and_told_to_nobody(watched: Watched) -> None:
    await watched.pool.execute("DELETE FROM message_routes")
    await watched.fail_for(days=5)
    await watched.watch()
    assert await watched.notices() == []


async def test_notices_about_an_endpoint_of_notices_are_not_routed(watched: Watched) -> None:
    await watched.pool.execute("UPDATE message_routes SET topic_filter = 'tenant/test/notices/#'")
    await watched.fail_for(days=5)
    await watched.watch()
    assert [row["is_routed"] for row in await watched.pool.fetch("SELECT * FROM notices")] == [
        False
    ]


async def test_many_endpoints_are_judged_in_pages(watched: Watched) -> None:
    endpoints = [f"{number:032}" for number in range(health_watch._AT_A_TIME + 20)]
    await watched.pool.execute(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type, endpoint)"
        " SELECT 'test', each, 'tenant/test/#', 'webhook', each FROM unnest($1::text[]) AS each",
        endpoints,
    )
    await watched.pool.execute(
        "INSERT INTO endpoint_health (tenant_id, endpoint, failing_since, failures,"
        " last_failure_at, clock_started_at) SELECT 'test', each, now() - interval '7 days', 9,"
        " now(), now() - interval '6 days' FROM unnest($1::text[]) AS each",
        endpoints,
    )
    await watched.watch()
    disabled = "SELECT count(*) FROM message_routes WHERE disabled_reason = 'ENDPOINT_FAILING'"
    assert await watched.pool.fetchval(disabled) == len(endpoints)


async def test_a_disabled_endpoint_is_probed_once_a_day_by_a_test(watched: Watched) -> None:
    async def probe() -> list[Publication]:
        sender = Sender()
        scope = replace(watched.scope, settings=ProbeSettings(), broker=sender)
        await probe_endpoints(Context(scope))
        return sender.publications

    await watched.fail_for(days=5)
    assert await probe() == []
    await watched.watch()
    assert await probe() == []
    await watched.age(days=1)
    [sent] = await probe()
    assert await probe() == []
    job = Job.model_validate_json(sent.data)
    assert (sent.subject, job.is_test) == ("routes.test.webhook", True)
    assert job.route_id == str((await watched.route())["id"])
    await watched.age(days=1)
    assert len(await probe()) == 1


async def test_an_endpoint_that_is_gone_or_whose_route_a_person_enabled_is_not_probed(
    watched: Watched,
) -> None:
    await watched.fail_for(days=5)
    await watched.watch()
    await watched.age(days=2)
    sender = Sender()
    scope = replace(watched.scope, settings=ProbeSettings(), broker=sender)
    for change in ("disabled_reason = 'ENDPOINT_GONE'", "is_enabled = TRUE"):
        await watched.pool.execute(f"UPDATE message_routes SET {change}")  # noqa: S608
        await probe_endpoints(Context(scope))
    assert sender.publications == []
