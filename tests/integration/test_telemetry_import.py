"""Import of telemetry from the past, on a real PostgreSQL."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest

from functions.ingest import importing
from functions.ingest.importing import ImportReport, ImportSettings, import_telemetry
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.telemetry import UNHURRIED, Backbone, Row

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
PAST = MIDNIGHT - 100 * DAY


@pytest.fixture
async def backbone(postgres_dsn: str) -> AsyncIterator[Backbone]:
    pool = await open_pool(postgres_dsn, max_size=6)
    made = Backbone(Caller(pool, settings=UNHURRIED), count(1), [])
    await made.add_devices("d", "e")
    yield made
    await pool.close()


async def send(backbone: Backbone, *rows: Any, settings: Any = None, **fields: Any) -> ImportReport:
    caller = Caller(backbone.pool, settings=settings or ImportSettings())
    return await caller.ask(import_telemetry, tenant_id="t", rows=list(rows), **fields)


def row(at: datetime, value: Any = 1, /, **fields: Any) -> dict[str, Any]:
    return {"device_id": "d", "time": at.isoformat(), "metrics": {"temp": value}, **fields}


async def test_rows_of_the_past_have_their_own_time_and_partitions(backbone: Backbone) -> None:
    report = await send(
        backbone,
        row(PAST, 1, metrics={"temp": 1, "wind": 3.5, "sky": "blue"}),
        row(PAST + 1.5 * HOUR, 2, device_id="e", msg_type="heartbeat", site_id="s1"),
        row(PAST + 3 * DAY, 3),
    )
    assert report == ImportReport(accepted=3, written=3, refused_count=0, refused=[])
    found = await backbone.pool.fetch(
        "SELECT time, device_id, site_id, msg_type, seq, metrics::text AS metrics,"
        " tableoid::regclass::text AS part FROM telemetry ORDER BY time"
    )
    assert [each["time"] for each in found] == [PAST, PAST + 1.5 * HOUR, PAST + 3 * DAY]
    assert [(each["device_id"], each["msg_type"]) for each in found] == [
        ("d", "telemetry"),
        ("e", "heartbeat"),
        ("d", "telemetry"),
    ]
    assert json.loads(found[0]["metrics"]) == {"temp": 1, "wind": 3.5, "sky": "blue"}
    days = [PAST, PAST, PAST + 3 * DAY]
    assert [each["part"] for each in found] == [f"telemetry_{day:%Y%m%d}" for day in days]
    assert all(each["seq"] < 0 and each["site_id"] == "s1" for each in found)
    sensors = await backbone.pool.fetch(
        "SELECT sensor FROM device_sensors WHERE device_id = 'd' ORDER BY sensor"
    )
    assert [each["sensor"] for each in sensors] == ["sky", "temp", "wind"]


async def test_what_is_imported_is_rolled_up(backbone: Backbone) -> None:
    rows = [row(PAST + n * timedelta(minutes=7), n, device_id="de"[n % 2]) for n in range(1000)]
    await send(backbone, *rows)
    backbone.written = [
        Row(
            datetime.fromisoformat(each["time"]),
            "t",
            each["device_id"],
            "",
            "",
            0,
            json.dumps(each["metrics"]),
        )
        for each in rows
    ]
    await backbone.check("1h", PAST, PAST + 6 * DAY)
    await backbone.roll_up()
    assert await backbone.marks() == 0
    await backbone.check("1h", PAST, PAST + 6 * DAY)
    await backbone.check("1d", PAST, PAST + 6 * DAY)


async def test_rows_that_are_sent_again_are_written_once(backbone: Backbone) -> None:
    rows = [row(PAST + n * HOUR, n) for n in range(20)]
    assert (await send(backbone, *rows, rows[0])).written == 20
    await backbone.roll_up()
    again = {**rows[1], "metrics": {"temp": 99}}
    report = await send(backbone, *rows, again, {**rows[2], "msg_type": "event"})
    assert (report.accepted, report.written) == (22, 2)
    same = {**rows[3], "time": (PAST + 3 * HOUR).astimezone().isoformat()}
    assert (await send(backbone, same)).written == 0
    reports = await asyncio.gather(*(send(backbone, row(PAST, 5)) for _ in range(4)))
    assert sum(report.written for report in reports) == 1


BAD: list[tuple[Any, str]] = [
    (5, "ROW_INVALID"),
    ({}, "ROW_INVALID"),
    (row(PAST, colour="red"), "ROW_INVALID"),
    (row(PAST, metrics=[1]), "ROW_INVALID"),
    (row(PAST, device_id=7), "ROW_INVALID"),
    (row(PAST, time=1_700_000_000), "ROW_INVALID"),
    (row(PAST, time="1700000000"), "TIME_INVALID"),
    (row(PAST, time="2026-01-01T00:00:00"), "TIME_INVALID"),
    (row(PAST, time="0001-01-01T00:00:00+14:00"), "TIME_INVALID"),
    (row(PAST - 400 * DAY), "TIME_TOO_OLD"),
    (row(datetime.now(UTC) + DAY), "TIME_IN_FUTURE"),
    (row(PAST, device_id="a/b"), "BAD_TOPIC_FORMAT"),
    (row(PAST, device_id=".."), "BAD_TOPIC_FORMAT"),
    (row(PAST, msg_type="shadow/reported"), "BAD_TOPIC_FORMAT"),
    (row(PAST, msg_type="commands"), "BAD_TOPIC_FORMAT"),
    (row(PAST, device_id="nobody"), "UNREGISTERED_DEVICE"),
    (row(PAST, site_id="s2"), "SITE_MISMATCH_REGISTRY_VS_PAYLOAD"),
    (row(PAST, metrics={"a b": 1}), "METRIC_KEY_INVALID"),
    (row(PAST, metrics={"a": [1]}), "METRIC_VALUE_INVALID"),
    (row(PAST, metrics={"a": 10**30}), "METRIC_VALUE_INVALID"),
    (row(PAST, metrics={"a": float("nan")}), "METRIC_VALUE_INVALID"),
    (row(PAST, metrics={"a": "\ud800"}), "METRIC_VALUE_INVALID"),
    (row(PAST, metrics={f"m{n}": n for n in range(51)}), "TOO_MANY_METRICS"),
    (row(PAST, metrics={f"m{n}": "x" * 1000 for n in range(9)}), "PAYLOAD_TOO_LARGE"),
]


async def test_each_wrong_line_is_refused_by_itself_and_named(backbone: Backbone) -> None:
    rows = [bad for bad, _ in BAD]
    report = await send(backbone, row(PAST), *rows, row(PAST + HOUR), first_line=101)
    assert [(each.line, each.code) for each in report.refused] == [
        (102 + place, code) for place, (_, code) in enumerate(BAD)
    ]
    assert (report.accepted, report.written, report.refused_count) == (2, 2, len(BAD))
    assert not any("colour" in each.detail for each in report.refused)


async def test_a_dry_run_writes_nothing(backbone: Backbone) -> None:
    report = await send(backbone, row(PAST), BAD[0][0], dry_run=True)
    assert (report.accepted, report.written, report.refused_count) == (1, 0, 1)
    assert await backbone.pool.fetchval("SELECT count(*) FROM telemetry") == 0
    part = f"telemetry_{PAST:%Y%m%d}"
    assert await backbone.pool.fetchval("SELECT to_regclass($1)", part) is None


async def test_what_would_not_be_kept_is_not_imported(backbone: Backbone) -> None:
    report = await send(backbone, row(PAST), settings=ImportSettings(keep_days=99))
    assert [each.code for each in report.refused] == ["TIME_TOO_OLD"]
    await backbone.pool.execute(
        "INSERT INTO telemetry_floors (tenant_id, rows_from) VALUES ('t', $1)", PAST + DAY
    )
    report = await send(backbone, row(PAST), row(PAST + DAY))
    assert [(each.line, each.code) for each in report.refused] == [(1, "TIME_TOO_OLD")]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("UPDATE device_registry SET status = 'REVOKED'", "DEVICE_REVOKED"),
        ("UPDATE tenants SET status = 'SUSPENDED'", "SUBSCRIPTION_SUSPENDED"),
        ("DELETE FROM subscriptions", "NO_SUBSCRIPTION_CAPACITY"),
    ],
)
async def test_devices_and_subscription_must_be_in_force(
    backbone: Backbone, change: str, code: str
) -> None:
    await backbone.pool.execute(change)
    assert [each.code for each in (await send(backbone, row(PAST))).refused] == [code]


async def test_who_holds_the_table_is_given_way_to(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly = {**importing._QUERIES, "limit_lock_wait": "SET LOCAL lock_timeout = '50ms'"}
    monkeypatch.setattr(importing, "_QUERIES", quickly)
    async with backbone.pool.acquire() as other:
        attempt = other.transaction()
        await attempt.start()
        await other.execute("SELECT count(*) FROM telemetry")
        caller = Caller(backbone.pool, settings=ImportSettings())
        wanted = {"tenant_id": "t", "rows": [row(PAST)]}
        assert await caller.refuse(import_telemetry, **wanted) == ("TELEMETRY_BUSY", 503)
        await attempt.rollback()
    assert (await send(backbone, row(PAST))).written == 1


async def test_rows_of_the_default_partition_move_into_the_day_that_is_made(
    backbone: Backbone,
) -> None:
    await backbone.write((PAST + HOUR, 1))
    await send(backbone, row(PAST, 2))
    counted = f"SELECT count(*) FROM telemetry_{PAST:%Y%m%d}"  # noqa: S608
    assert await backbone.pool.fetchval(counted) == 2
