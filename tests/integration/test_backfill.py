"""A device that was cut off sends what it kept: no reading is lost, and queries find its time."""

import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions.ingest.plan import Row
from functions.management import telemetry as measured
from runtime import Context, Event, Message, Reject
from runtime.broker.connection import Broker
from runtime.context import Scope
from tests.support.ingest import GOOD, Ingest, raw, register, started

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 1_000_000_000
SECOND = timedelta(seconds=1)
DEVICE = {"tenant_id": "test", "device_id": "dev1"}


@pytest.fixture
async def function(postgres_dsn: str, broker: Broker) -> AsyncIterator[Ingest]:
    async with started(postgres_dsn, broker) as running:
        await register(running.pool)
        yield running


def reading(number: int, ts: object, stored_at: datetime = NOW) -> Message:
    message = raw(number, {**GOOD, "metrics": {"n": number}, "ts": ts})
    message.stored_at_ns = int(stored_at.timestamp() * 1_000_000) * 1000 + number * 1000
    return message


async def query(function: Ingest, **fields: Any) -> list[list[int]]:
    """What the device measured, page after page."""
    scope = Scope(
        "query", None, function.scope.broker, function.scope.resources, function.scope.log
    )
    pages: list[list[int]] = []
    cursor = None
    while True:
        asked = measured.TelemetryQuery.model_validate({**DEVICE, **fields, "cursor": cursor})
        page = await measured.query_telemetry(Event(Message("q", b""), asked), Context(scope))
        pages.append([row.metrics.get("n", row.seq) for row in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return pages


async def test_a_thousand_readings_of_an_outage_are_rows_with_their_own_times(
    function: Ingest,
) -> None:
    flush = [
        reading(number, (NOW - (1000 - number) * SECOND).isoformat()) for number in range(1000)
    ]
    await function.run(*flush)
    live = [reading(number, NOW.timestamp()) for number in range(1000, 1010)]
    await function.run(*live)
    assert await function.counts() == (1010, 0)
    rows = await function.rows()
    assert [row["device_time"] for row in rows[:1000]] == [
        NOW - (1000 - number) * SECOND for number in range(1000)
    ]
    span = {"from": NOW - 900 * SECOND, "to": NOW - 400 * SECOND, "by": "device_time"}
    assert await query(function, **span, limit=500) == [list(range(100, 600))]


async def test_a_flood_without_times_is_cut_as_before(function: Ingest) -> None:
    await function.run(*(reading(number, None) for number in range(100)))
    assert await function.counts() == (20, 80)


@pytest.mark.parametrize("nonsense", [0, "soon", "1970-01-01T00:00:00Z", 4e18, [], "2026-03-01"])
async def test_a_time_that_cannot_be_true_costs_the_reading_nothing(
    function: Ingest, nonsense: object
) -> None:
    await function.run(reading(1, nonsense))
    (row,) = await function.rows()
    assert row["device_time"] is None


async def test_rows_are_read_by_device_time_page_after_page(function: Ingest) -> None:
    """Late rows, rows with a clock ahead, and rows without a time are in one order."""
    late = [reading(n, (NOW - (20 - n) * 10 * SECOND).isoformat()) for n in range(20)]
    ahead = [reading(n, (NOW + (n - 15) * 10 * SECOND).isoformat()) for n in range(20, 40)]
    silent = [reading(n, None, NOW + (n - 15) * 10 * SECOND) for n in range(40, 50)]
    await function.run(*late, *ahead, *silent)
    assert (await function.counts())[0] == 50
    span = {"from": NOW - 3600 * SECOND, "to": NOW + 3600 * SECOND, "by": "device_time"}
    for limit in (1, 3, 7, 49, 50):
        pages = await query(function, **span, limit=limit)
        assert [n for page in pages for n in page] == list(range(50)), limit
        assert all(len(page) == limit for page in pages[:-1])
    part = {"from": NOW - 55 * SECOND, "to": NOW + 95 * SECOND, "by": "device_time"}
    assert await query(function, **part) == [list(range(15, 25))]
    by_storage = await query(function, **{**span, "by": "time"})
    assert by_storage[0][:41] == list(range(41))


async def test_pages_by_device_time_agree_with_a_sort_of_all_rows(function: Ingest) -> None:
    chance = random.Random(7)  # noqa: S311 - numbers of a test
    rows: list[tuple[Any, ...]] = []
    for seq in range(2_000):
        time = NOW + timedelta(seconds=chance.uniform(0, 7_200))
        own = time - timedelta(seconds=chance.choice([chance.uniform(-300, 60), 60, 3_000]))
        rows.append((time, "test", "dev1", "s1", "telemetry", seq, "{}", own))
    rows[::5] = [(*row[:7], None) for row in rows[::5]]
    await function.pool.copy_records_to_table("telemetry", records=rows, columns=Row._fields)
    for begin_s, end_s, limit in [(0, 9_999, 500), (-4_000, 3_000, 77), (500, 700, 10)]:
        begin, end = NOW + begin_s * SECOND, NOW + end_s * SECOND
        measured_at = [(row[7] or row[0], row[5]) for row in rows]
        wanted = [seq for time, seq in sorted(measured_at) if begin <= time < end]
        span = {"from": begin, "to": end, "by": "device_time", "limit": limit}
        pages = await query(function, **span)
        assert [seq for page in pages for seq in page] == wanted
        assert all(len(page) == limit for page in pages[:-1])


async def test_late_rows_are_found_by_their_index(function: Ingest) -> None:
    plan = await function.pool.fetch(
        "EXPLAIN SELECT * FROM telemetry WHERE tenant_id = 't' AND device_id = 'd'"
        " AND time - device_time > interval '1 minute' AND device_time >= now()"
    )
    assert any("_device_time_idx" in row[0] for row in plan), json.dumps([row[0] for row in plan])


async def test_a_range_that_is_none_is_refused(function: Ingest) -> None:
    with pytest.raises(Reject):
        await query(function, **{"from": NOW, "to": NOW - SECOND, "by": "device_time"})
