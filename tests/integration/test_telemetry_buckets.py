"""Roll-ups of telemetry, and the endpoint that reads them, on a real PostgreSQL."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from functions.ingest.rollups import roll_up
from functions.management.telemetry_buckets import query_telemetry_buckets
from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.host import eventually
from tests.support.ingest import GOOD, STORED_AT_NS, raw, register, started
from tests.support.telemetry import DAY, UNHURRIED, Backbone, after

MIGRATION = Path(__file__).parents[2] / "functions/domain/migrations/versions"


@pytest.fixture
async def backbone(postgres_dsn: str) -> AsyncIterator[Backbone]:
    pool = await open_pool(postgres_dsn, max_size=8)
    made = Backbone(Caller(pool, settings=UNHURRIED), count(1), [])
    await made.add_devices("d", "e")
    yield made
    await pool.close()


async def test_what_ingest_writes_is_rolled_up_once_however_often_it_is_delivered(
    postgres_dsn: str, broker: Broker
) -> None:
    async with started(postgres_dsn, broker) as ingest:
        await register(ingest.pool)
        caller = Caller(ingest.pool, settings=UNHURRIED)
        messages = [raw(n, {**GOOD, "metrics": {"temp": n}}) for n in range(1, 101)]
        await ingest.run(*messages[:60])
        await roll_up(caller.context())
        await ingest.restart()
        await ingest.run(*messages)
        await roll_up(caller.context())
        assert await ingest.pool.fetchval("SELECT count(*) FROM rollup_marks") == 0
        begin = datetime.fromtimestamp(STORED_AT_NS // 10**9, UTC)
        page = await caller.ask(
            query_telemetry_buckets,
            tenant_id="test",
            sensor="temp",
            bucket="1d",
            aggregates="count,sum,max,min",
            **{"from": begin, "to": begin + timedelta(seconds=1)},
        )
        [item] = page.items
        assert item.aggregates == {"count": [100], "sum": [5050.0], "min": [1.0], "max": [100.0]}
        for table in ("telemetry_minutes", "telemetry_hours", "telemetry_days"):
            assert await ingest.pool.fetchval(f"SELECT sum(count) FROM {table}") == 100  # noqa: S608


@pytest.mark.parametrize("seed", range(3))
async def test_an_answer_is_right_at_every_moment_whatever_comes_late(
    backbone: Backbone, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a repeatable choice
    for _ in range(8):
        for device in ("d", "e"):
            times = [
                after(hours=chance.uniform(20, 52), seconds=chance.uniform(0, 60))
                for _ in range(chance.randrange(1, 40))
            ]
            await backbone.write(
                *((time, chance.choice([1, 2.5, -1e6, 7e-5])) for time in times), device=device
            )
        if chance.random() < 0.6:
            await backbone.roll_up()
        await backbone.check("1m", after(hours=30), after(hours=34))
        await backbone.check("1h", after(hours=18), after(hours=60))
        await backbone.check("1d", after(days=-1), after(days=5))
    await backbone.roll_up()
    assert await backbone.marks() == 0
    await backbone.check("1h", after(hours=18), after(hours=60))
    await backbone.check("1d", after(days=-1), after(days=5))


async def test_a_minute_is_not_rolled_up_before_it_is_over(backbone: Backbone) -> None:
    now = datetime.now(UTC)
    await backbone.write((now, 20))
    await backbone.roll_up()
    assert await backbone.marks() == 1
    page = await backbone.query(bucket="1d")
    assert page.items[0].aggregates["sum"][-2:] in ([None, 20.0], [20.0, None])


async def test_several_hosts_roll_up_at_once(backbone: Backbone) -> None:
    for hour in range(30):
        await backbone.write(*((after(hours=hour, minutes=n), n) for n in range(0, 60, 7)))
    await asyncio.gather(*(backbone.roll_up() for _ in range(6)))
    await backbone.roll_up()
    assert await backbone.marks() == 0
    await backbone.check("1h", after(hours=-1), after(hours=31))
    await backbone.check("1d", after(days=-1), after(days=3))


async def test_a_host_that_dies_within_a_step_leaves_the_marks(backbone: Backbone) -> None:
    await backbone.write((after(hours=1), 1), (after(hours=2), 2))
    async with backbone.pool.acquire() as other:
        attempt = other.transaction()
        await attempt.start()
        await other.execute("LOCK TABLE telemetry_minutes IN EXCLUSIVE MODE")
        running = asyncio.create_task(backbone.roll_up())

        async def waits() -> bool:
            blocked = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
            return bool(await backbone.pool.fetchval(blocked))

        await eventually(waits, "the step")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await attempt.rollback()
    assert await backbone.marks() == 2
    await backbone.check("1h", after(hours=0), after(hours=4))
    await backbone.roll_up()
    assert await backbone.marks() == 0
    await backbone.check("1h", after(hours=0), after(hours=4))


async def test_data_that_cannot_be_rolled_up_holds_up_nobody_else(backbone: Backbone) -> None:
    await backbone.add_devices("d", tenant="bad")
    await backbone.pool.execute("ALTER TABLE telemetry_minutes ADD CHECK (tenant_id <> 'bad')")
    await backbone.write((after(hours=2), 2), tenant="bad")
    await backbone.write((after(hours=1), 1))
    with capture_logs() as lines:
        await backbone.roll_up()
    [line] = [line for line in lines if line["log_level"] == "error"]
    assert (line["tenant_id"], line["level"], line["error_type"]) == (
        "bad",
        "minute",
        "CheckViolationError",
    )
    assert await backbone.marks() == 1
    assert await backbone.pool.fetchval("SELECT sum(count) FROM telemetry_days") == 1
    for tenant in ("bad", "t"):
        await backbone.check("1h", after(hours=0), after(hours=4), tenant)


async def test_only_numbers_of_registered_sensors_are_rolled_up(backbone: Backbone) -> None:
    values = [1e308, 1e308, 1e-320, "x", True, None, 2**62, 1]
    await backbone.write(*((after(seconds=n), value) for n, value in enumerate(values)))
    await backbone.pool.execute(
        "UPDATE telemetry SET metrics = '[1]' WHERE metrics @> '{\"temp\": 1}'"
    )
    wanted = {"count": [2], "sum": [float(2**62)], "min": [0.0], "max": [float(2**62)]}
    spans = {"from": after(), "to": after(hours=1), "aggregates": "count,sum,min,max"}
    assert (await backbone.query(**spans)).items[0].aggregates == wanted
    await backbone.roll_up()
    assert await backbone.marks() == 0
    assert (await backbone.query(**spans)).items[0].aggregates == wanted
    assert (await backbone.query(**{**spans, "sensor": "other"})).items == []


async def test_a_bucket_does_not_shrink_when_its_rows_are_gone(backbone: Backbone) -> None:
    await backbone.write((after(hours=1), 1), (after(hours=1), 2))
    await backbone.roll_up()
    await backbone.pool.execute("DELETE FROM telemetry")
    await backbone.pool.execute("SELECT mark_telemetry('t', $1, $2)", after(), after(hours=9))
    await backbone.roll_up()
    assert await backbone.marks() == 0
    await backbone.check("1d", after(), after(days=1))


async def test_rows_from_before_the_upgrade_are_rolled_up(backbone: Backbone) -> None:
    await backbone.write((after(hours=1), 1), (after(hours=40), 2), (datetime.now(UTC), 3))
    await backbone.pool.execute(
        "DROP TABLE rollup_marks, telemetry_minutes, telemetry_hours, telemetry_days;"
        "DROP FUNCTION mark_telemetry, telemetry_number"
    )
    [upgrade] = MIGRATION.glob("*_rollups.sql")
    await backbone.pool.execute(upgrade.read_text(encoding="utf-8"))
    await backbone.check("1d", after(), after(days=3))
    # A host of the version before does not mark what it writes today.
    await backbone.pool.execute(
        "INSERT INTO telemetry SELECT time, tenant_id, device_id, site_id,"
        " msg_type, seq + 1000, metrics FROM telemetry WHERE time > now() - interval '1 day'"
    )
    await backbone.roll_up()
    assert await backbone.pool.fetchval("SELECT sum(count) FROM telemetry_days") == 2
    await backbone.check("1h", after(), after(hours=60))
    page = await backbone.query(bucket="1d", aggregates="count")
    assert sum(page.items[0].aggregates["count"]) == 2  # type: ignore[arg-type]


async def test_devices_come_in_pages(backbone: Backbone) -> None:
    await backbone.add_devices(*(f"x{n}" for n in range(5)))
    await backbone.write((after(hours=1), 1), device="x3")
    span = {"from": after(), "to": after(hours=2), "aggregates": "count"}
    seen: list[tuple[str, Any]] = []
    cursor = None
    while True:
        page = await backbone.query(**span, limit=2, cursor=cursor)
        seen += [(item.device_id, item.aggregates["count"]) for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    names = ["d", "e", *(f"x{n}" for n in range(5))]
    assert seen == [(name, [0, 1] if name == "x3" else [0, 0]) for name in names]
    page = await backbone.query(**span, device_ids="x3,d,nobody")
    assert [item.device_id for item in page.items] == ["d", "x3"]
    assert page.starts == [after(), after(hours=1)]


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"tenant_id": "nobody"}, ("TENANT_NOT_FOUND", 404)),
        ({"from": after(days=1), "to": after()}, ("RANGE_INVALID", 422)),
        ({"from": after(), "to": after(hours=26), "bucket": "1m"}, ("RANGE_TOO_LONG", 422)),
        ({"aggregates": "count,count"}, ("AGGREGATES_INVALID", 422)),
        ({"aggregates": "median"}, ("AGGREGATES_INVALID", 422)),
        ({"device_ids": "d,"}, ("DEVICE_IDS_INVALID", 422)),
        ({"device_ids": ",".join(["d"] * 101)}, ("DEVICE_IDS_INVALID", 422)),
        ({"cursor": "x"}, ("CURSOR_INVALID", 400)),
    ],
)
async def test_what_cannot_be_answered_is_refused(
    backbone: Backbone, fields: dict[str, Any], refusal: tuple[str, int]
) -> None:
    wanted = {"tenant_id": "t", "sensor": "temp", **fields}
    assert await backbone.caller.refuse(query_telemetry_buckets, **wanted) == refusal


@pytest.mark.long
async def test_a_month_of_a_hundred_devices_is_answered_in_300_ms(backbone: Backbone) -> None:
    """Also with the current minutes in rows, and a tenant of others beside it."""
    devices = [f"m{n:03}" for n in range(100)]
    await backbone.add_devices(*devices)
    await backbone.add_devices(*devices, tenant="other")
    begin = DAY - timedelta(days=30)
    for table, width in (("telemetry_hours", "1 hour"), ("telemetry_days", "1 day")):
        await backbone.pool.execute(
            f"INSERT INTO {table} SELECT tenant, device, 'temp', bucket, 60, random() * 1000,"  # noqa: S608
            " random(), 20 + random() FROM unnest($1::text[]) device,"
            f" generate_series($2::timestamptz, $3, '{width}') bucket,"
            " unnest('{t,other}'::text[]) tenant ORDER BY bucket",
            devices,
            begin,
            DAY - timedelta(seconds=1),
        )
    for device in devices:
        await backbone.write(
            *((DAY - timedelta(seconds=n * 5), n) for n in range(1, 13)), device=device
        )
    await backbone.pool.execute("ANALYZE")
    clock = asyncio.get_running_loop().time
    for bucket, aggregates in (("1h", "mean"), ("1d", "count,mean,min,max")):
        spent = []
        for _ in range(5):
            began_s = clock()
            cursor, seen = None, 0
            while True:
                page = await backbone.query(
                    bucket=bucket,
                    aggregates=aggregates,
                    device_ids=",".join(devices),
                    cursor=cursor,
                    **{"from": begin, "to": DAY},
                )
                seen += len(page.items)
                cursor = page.next_cursor
                if cursor is None:
                    break
            spent.append(clock() - began_s)
            assert seen == 100
        assert sorted(spent)[2] < 0.3, spent
