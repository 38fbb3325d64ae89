"""Telemetry with roll-ups, of which a test knows every number."""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

import asyncpg
import pytest

from functions.domain.rollup_marks import add_marks
from functions.ingest.rollups import RollupSettings, roll_up
from functions.management.telemetry_buckets import BucketPage, query_telemetry_buckets
from tests.support.calls import Caller
from tests.support.ingest import register

DAY = datetime(2026, 3, 1, tzinfo=UTC)
UNHURRIED = RollupSettings(run_s=600, statement_timeout_s=600)
"""One run rolls up all that is marked, however slow the machine is."""
WIDTHS = {"1m": timedelta(minutes=1), "1h": timedelta(hours=1), "1d": timedelta(days=1)}


def after(**parts: float) -> datetime:
    return DAY + timedelta(**parts)


class Row(NamedTuple):
    time: datetime
    tenant_id: str
    device_id: str
    site_id: str
    msg_type: str
    seq: int
    metrics: str


@dataclass
class Backbone:
    """A database with rows, of which the test knows every number."""

    caller: Caller
    sequences: "count[int]"
    written: list[Row]

    @property
    def pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        return self.caller.pool

    async def add_devices(self, *devices: str, tenant: str = "t", sensor: str = "temp") -> None:
        for device in devices:
            await register(self.pool, tenant=tenant, device=device)
            await self.pool.execute(
                "INSERT INTO device_sensors VALUES ($1, $2, $3, now())", tenant, device, sensor
            )

    async def write(
        self, *readings: tuple[datetime, Any], device: str = "d", tenant: str = "t"
    ) -> None:
        """Write rows with their marks, as ingest does."""
        rows = [
            Row(time, tenant, device, "s1", "telemetry", next(self.sequences), _metrics(value))
            for time, value in readings
        ]
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.copy_records_to_table(
                "telemetry", records=rows, columns=list(Row._fields)
            )
            await add_marks(connection, rows)
        self.written += rows

    async def roll_up(self) -> None:
        await roll_up(self.caller.context())

    async def query(self, **fields: Any) -> BucketPage:
        return await self.caller.ask(
            query_telemetry_buckets,
            **{
                "tenant_id": "t",
                "sensor": "temp",
                "aggregates": "count,sum,min,max,mean",
                **fields,
            },
        )

    async def check(self, bucket: str, begin: datetime, end: datetime, tenant: str = "t") -> None:
        """Compare every bucket of every device with the rows."""
        page = await self.query(tenant_id=tenant, bucket=bucket, **{"from": begin, "to": end})
        width = WIDTHS[bucket]
        wanted: dict[tuple[str, datetime], list[float]] = defaultdict(list)
        for row in self.written:
            if row.tenant_id == tenant:
                start = DAY + (row.time - DAY) // width * width
                wanted[(row.device_id, start)].append(json.loads(row.metrics)["temp"])
        assert len(page.starts) == (end - begin) / width
        for item in page.items:
            for place, start in enumerate(page.starts):
                values = wanted[(item.device_id, start)]
                found = {name: values[place] for name, values in item.aggregates.items()}
                assert found == {
                    "count": len(values),
                    "sum": pytest.approx(math.fsum(values)) if values else None,
                    "min": min(values, default=None),
                    "max": max(values, default=None),
                    "mean": pytest.approx(math.fsum(values) / len(values)) if values else None,
                }, (item.device_id, start)

    async def marks(self) -> int:
        found: int = await self.pool.fetchval("SELECT count(*) FROM rollup_marks")
        return found


def _metrics(value: Any) -> str:
    return json.dumps({"temp": value, "other": 5})
