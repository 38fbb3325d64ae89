"""Retention of telemetry for each tenant, on a real PostgreSQL."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from structlog.testing import capture_logs

from functions.ingest import telemetry_retention as retention
from functions.ingest.telemetry_retention import RetentionSettings, expire_telemetry
from functions.management import tenants
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.telemetry import UNHURRIED, Backbone

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
OLD, KEPT = MIDNIGHT - 40 * DAY, MIDNIGHT - 5 * DAY


@pytest.fixture
async def backbone(postgres_dsn: str) -> AsyncIterator[Backbone]:
    pool = await open_pool(postgres_dsn, max_size=4)
    made = Backbone(Caller(pool, settings=UNHURRIED), count(1), [])
    await made.add_devices("d")
    await made.add_devices("d", tenant="other")
    for tenant in ("t", "other"):
        for day in (OLD, OLD + DAY, KEPT):
            await made.write(*((day + n * HOUR, n) for n in range(1, 24, 3)), tenant=tenant)
    yield made
    await pool.close()


async def keep(backbone: Backbone, **days: Any) -> tenants.Tenant:
    return await backbone.caller.ask(tenants.update_tenant, tenant_id="t", **days)


async def expire(backbone: Backbone, **settings: Any) -> None:
    caller = Caller(backbone.pool, settings=RetentionSettings(**settings))
    await expire_telemetry(caller.context())


async def left(backbone: Backbone, table: str, tenant: str = "t") -> int:
    query = f"SELECT count(*) FROM {table} WHERE tenant_id = $1"  # noqa: S608
    found: int = await backbone.pool.fetchval(query, tenant)
    return found


async def test_rows_go_and_what_they_came_to_stays(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_AT_A_TIME", 3)
    await backbone.roll_up()
    await keep(backbone, telemetry_days=30)
    await expire(backbone)
    assert [await left(backbone, table) for table in ("telemetry", "telemetry_minutes")] == [8, 8]
    for table in ("telemetry", "telemetry_minutes", "telemetry_hours"):
        assert await left(backbone, table, "other") == 24
    await backbone.check("1h", OLD, OLD + 2 * DAY)
    await backbone.check("1d", OLD - DAY, MIDNIGHT)
    page = await backbone.query(bucket="1m", aggregates="count", **{"from": OLD, "to": OLD + DAY})
    assert set(page.items[0].aggregates["count"]) == {0}
    await backbone.check("1m", KEPT, KEPT + DAY)
    await backbone.check("1m", OLD, OLD + DAY, "other")


async def test_a_day_goes_only_when_it_is_rolled_up(backbone: Backbone) -> None:
    await keep(backbone, telemetry_days=30)
    with capture_logs() as lines:
        await expire(backbone)
    assert await left(backbone, "telemetry") == 24
    assert [line["tenant_id"] for line in lines if line["log_level"] == "warning"] == ["t"]
    await backbone.roll_up()
    await expire(backbone)
    assert await left(backbone, "telemetry") == 8
    await backbone.check("1d", OLD, MIDNIGHT)


async def test_rows_that_come_after_their_day_is_gone_change_nothing(backbone: Backbone) -> None:
    await backbone.roll_up()
    await keep(backbone, telemetry_days=30)
    await expire(backbone)
    known = list(backbone.written)
    await backbone.write(*((OLD + n * HOUR, 1000) for n in range(24)), (KEPT + HOUR, 5))
    backbone.written = [*known, backbone.written[-1]]
    await backbone.check("1h", OLD, OLD + DAY)
    await backbone.check("1d", OLD, MIDNIGHT)
    await backbone.roll_up()
    assert await backbone.marks() == 0
    await expire(backbone)
    assert await left(backbone, "telemetry") == 9
    await backbone.check("1h", OLD, OLD + DAY)
    await backbone.check("1d", OLD, MIDNIGHT)


async def test_rollups_go_at_their_own_age(backbone: Backbone) -> None:
    await backbone.roll_up()
    await keep(backbone, telemetry_days=2, rollup_days=39)
    await expire(backbone)
    tables = ("telemetry", "telemetry_minutes", "telemetry_hours", "telemetry_days")
    assert [await left(backbone, table) for table in tables] == [0, 0, 16, 2]
    assert [await left(backbone, table, "other") for table in tables] == [24, 24, 24, 3]


async def test_the_installation_bounds_every_tenant(backbone: Backbone) -> None:
    await backbone.roll_up()
    await keep(backbone, telemetry_days=3)
    await expire(backbone, keep_days=10)
    assert await left(backbone, "telemetry") == 0
    assert await left(backbone, "telemetry", "other") == 8
    assert await left(backbone, "telemetry_minutes", "other") == 8
    await backbone.check("1d", OLD, MIDNIGHT)
    await backbone.check("1d", OLD, MIDNIGHT, "other")


async def test_a_run_without_time_leaves_the_rest_to_the_next(backbone: Backbone) -> None:
    await backbone.roll_up()
    await keep(backbone, telemetry_days=30)
    with capture_logs() as lines:
        await expire(backbone, run_s=1e-9)
    assert await left(backbone, "telemetry") == 24
    assert any("takes longer" in line["event"] for line in lines)
    await expire(backbone)
    assert await left(backbone, "telemetry") == 8


async def test_a_tenants_retention_is_set_shown_and_removed(backbone: Backbone) -> None:
    changed = await keep(backbone, telemetry_days=30, rollup_days=400)
    assert (changed.telemetry_days, changed.rollup_days) == (30, 400)
    assert (await keep(backbone, name="T")).telemetry_days == 30
    changed = await keep(backbone, rollup_days=None)
    assert (changed.telemetry_days, changed.rollup_days) == (30, None)
    new = {"tenant_id": "n", "telemetry_days": 7, "rollup_days": 7}
    made = await backbone.caller.ask(tenants.create_tenant, **new)
    assert await backbone.caller.ask(tenants.create_tenant, **new) == made
    refusal = await backbone.caller.refuse(tenants.create_tenant, tenant_id="n", telemetry_days=8)
    assert refusal == ("TENANT_EXISTS", 409)


@pytest.mark.parametrize("days", [{"rollup_days": 30}, {"telemetry_days": 8, "rollup_days": 7}])
async def test_rollups_do_not_go_before_their_rows(
    backbone: Backbone, days: dict[str, int]
) -> None:
    invalid = ("RETENTION_INVALID", 422)
    refuse = backbone.caller.refuse
    assert await refuse(tenants.update_tenant, tenant_id="t", **days) == invalid
    assert await refuse(tenants.create_tenant, tenant_id="n", **days) == invalid
