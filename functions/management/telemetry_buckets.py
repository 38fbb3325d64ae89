"""The endpoint that reads telemetry in buckets of a minute, an hour or a day."""

import asyncio
import operator
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

import asyncpg
import orjson
from pydantic import BaseModel, Field, StringConstraints

from functions.domain.named_sql import read_queries
from functions.domain.paging import Cursor, as_text, read_cursor, write_cursor
from functions.domain.topics import is_device_id
from functions.domain.values import NO_NUL, Time
from functions.management.bucket_sources import (
    WIDTHS,
    Level,
    Sources,
    Span,
    ceil,
    floor,
    plan_sources,
)
from functions.management.requests import TenantRequest
from functions.management.tenants import tenant_not_found
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("telemetry_buckets.sql"))
_MAX_BUCKETS = 1500
_MAX_DEVICES = 100
_DEVICES_AT_A_TIME = 20
# A reply is one NATS message, and a server accepts 1 MB by default.
_PAGE_BYTES = 900_000
# A page ends early rather than to keep its caller waiting.
_PAGE_S = 2.0

Aggregate = Literal["count", "sum", "min", "max", "mean"]
Values: TypeAlias = "list[int | float | None]"
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

_ADD: dict[Aggregate, Callable[[int | float, int | float], int | float]] = {
    "count": operator.add,
    "sum": operator.add,
    "min": min,
    "max": max,
}
_BUCKETS: dict[str, Level] = {"1m": "minute", "1h": "hour", "1d": "day"}
_DEFAULT_SPANS: dict[Level, timedelta] = {
    "minute": timedelta(hours=1),
    "hour": timedelta(days=1),
    "day": timedelta(days=30),
}
SensorName = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=NO_NUL)]
Names = Annotated[str, StringConstraints(min_length=1, max_length=13_000, pattern=NO_NUL)]


class BucketQuery(TenantRequest):
    """A request for what a sensor's numbers came to in each bucket, on one or more devices.

    Attributes:
        sensor: the metric's name.
        bucket: the width of a bucket: a minute, an hour or a day, in UTC.
        from_: rounded down to the beginning of a bucket. Default: an hour before `to` for minutes,
            a day for hours, 30 days for days.
        to: rounded up to the end of a bucket; default: now. There may be 1,500 buckets.
        device_ids: up to 100 ids, separated by commas; without it all devices with the sensor.
        aggregates: any of count, sum, min, max, mean, separated by commas.
        limit: the most devices of a page.
        cursor: the `next_cursor` of the page before.
    """

    sensor: SensorName
    bucket: Literal["1m", "1h", "1d"] = "1h"
    from_: Time | None = Field(default=None, alias="from")
    to: Time | None = None
    device_ids: Names | None = None
    aggregates: Annotated[str, StringConstraints(max_length=64)] = "mean"
    limit: Annotated[int, Field(ge=1, le=_MAX_DEVICES)] = _MAX_DEVICES
    cursor: Cursor | None = None


class DeviceBuckets(BaseModel):
    """What the sensor of one device came to: a list for each aggregate, one item for each bucket.

    A bucket without a number has the count 0 and otherwise null.
    """

    device_id: str
    aggregates: dict[Aggregate, Values]


class BucketPage(BaseModel):
    """Buckets of devices, in the order of their ids. A page may be shorter than its limit.

    Attributes:
        starts: the beginning of each bucket, for all devices the same.
        items: the devices that have the sensor.
        next_cursor: the cursor of the next page; None on the last one.
    """

    sensor: str
    bucket: str
    starts: list[datetime]
    items: list[DeviceBuckets]
    next_cursor: str | None = None


async def query_telemetry_buckets(event: Event[BucketQuery], ctx: Context) -> BucketPage:
    """Telemetry in buckets. What is not rolled up yet is read from the rows, at one moment."""
    query = event.data
    level = _BUCKETS[query.bucket]
    aggregates = _aggregates(query.aggregates)
    asked = None if query.device_ids is None else _device_ids(query.device_ids)
    wanted, starts = _range(query, level)
    (after,) = read_cursor(query.cursor, as_text)
    async with (
        ctx.postgres.acquire() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(_QUERIES["set_up"])
        rows = await connection.fetch(
            _QUERIES["devices"], query.tenant_id, query.sensor, asked, after, query.limit + 1
        )
        devices = [row["device_id"] for row in rows]
        if not devices and not await connection.fetchval(_QUERIES["is_tenant"], query.tenant_id):
            raise tenant_not_found()
        sources = await _sources(connection, query.tenant_id, level, wanted)
        reader = _Reader(connection, query, starts, sources, aggregates)
        items = await _read_page(reader, devices[: query.limit])
    is_last = len(items) == len(devices)
    return BucketPage.model_construct(
        sensor=query.sensor,
        bucket=query.bucket,
        starts=starts,
        items=items,
        next_cursor=None if is_last else write_cursor(items[-1].device_id),
    )


def _aggregates(text: str) -> tuple[Aggregate, ...]:
    names = text.split(",")
    known = get_args(Aggregate)
    if len(set(names)) != len(names) or not set(names) <= set(known):
        raise Reject(
            "AGGREGATES_INVALID",
            f"`aggregates` names each of {', '.join(known)} at most once, separated by commas.",
            status=422,
        )
    return tuple(name for name in known if name in names)


def _device_ids(text: str) -> list[str]:
    ids = text.split(",")
    if len(ids) > _MAX_DEVICES or not all(map(is_device_id, ids)):
        raise Reject(
            "DEVICE_IDS_INVALID",
            f"`device_ids` has up to {_MAX_DEVICES} device ids, separated by commas.",
            status=422,
        )
    return ids


def _range(query: BucketQuery, level: Level) -> tuple[Span, list[datetime]]:
    """The range in whole buckets, and the beginning of each."""
    width = WIDTHS[level]
    end = query.to or datetime.now(UTC)
    begin = query.from_ or end - _DEFAULT_SPANS[level]
    if begin > end:
        raise Reject("RANGE_INVALID", "`from` must not be later than `to`.", status=422)
    wanted = Span(floor(begin, width), ceil(end, width))
    buckets = (wanted.to_at - wanted.from_at) // width
    if buckets > _MAX_BUCKETS:
        raise Reject(
            "RANGE_TOO_LONG",
            f"There may be {_MAX_BUCKETS} buckets between `from` and `to`.",
            status=422,
        )
    return wanted, [wanted.from_at + width * number for number in range(buckets)]


async def _sources(connection: Connection, tenant_id: str, level: Level, wanted: Span) -> Sources:
    rows_from = await connection.fetchval(_QUERIES["floor"], tenant_id)
    if level == "minute" and rows_from is not None:
        wanted = Span(min(max(wanted.from_at, rows_from), wanted.to_at), wanted.to_at)
    marked: dict[Level, list[Span]] = {}
    day = WIDTHS["day"]
    around = (floor(wanted.from_at, day), ceil(wanted.to_at, day))
    for row in await connection.fetch(_QUERIES["marked"], tenant_id, *around, rows_from):
        marked.setdefault(row["level"], []).append(Span(row["from_at"], row["to_at"]))
    return plan_sources(wanted, level, marked)


class _Reader:
    """Reads the buckets of some devices, all at the moment of its transaction."""

    def __init__(
        self,
        connection: Connection,
        query: BucketQuery,
        starts: list[datetime],
        sources: Sources,
        aggregates: tuple[Aggregate, ...],
    ) -> None:
        self._connection = connection
        self._query = query
        self._starts = starts
        self._aggregates = aggregates
        self._spans = [
            times
            for spans in sources
            for times in ([span.from_at for span in spans], [span.to_at for span in spans])
        ]
        parts = {"count", "sum"} if "mean" in aggregates else set()
        self._wanted = [name in {*aggregates, *parts} for name in _ADD]

    async def read(self, devices: Sequence[str]) -> list[DeviceBuckets]:
        """The devices' buckets, in the same order."""
        rows = await self._connection.fetch(
            _QUERIES["buckets"],
            self._query.tenant_id,
            devices,
            self._query.sensor,
            self._starts,
            *self._spans,
            *self._wanted,
        )
        parts: dict[str, list[asyncpg.Record]] = {device_id: [] for device_id in devices}
        for row in rows:
            parts[row["device_id"]].append(row)
        return [
            DeviceBuckets.model_construct(
                device_id=device_id,
                aggregates={name: self._values(of_device, name) for name in self._aggregates},
            )
            for device_id, of_device in parts.items()
        ]

    def _values(self, parts: list[asyncpg.Record], name: Aggregate) -> Values:
        if name != "mean":
            return self._together(parts, name)
        totals, counts = self._together(parts, "sum"), self._together(parts, "count")
        return [
            None if total is None or not count else total / count
            for total, count in zip(totals, counts, strict=True)
        ]

    def _together(self, parts: list[asyncpg.Record], name: Aggregate) -> Values:
        add = _ADD[name]
        values: Values = [0 if name == "count" else None] * len(self._starts)
        for number, part in enumerate(parts):
            places, found = part["places"], part[name]
            if number == 0 and places == list(range(places[0], places[0] + len(places))):
                # The usual case: one table has them all, in order.
                values[places[0] - 1 : places[-1]] = found
                continue
            for place, value in zip(places, found, strict=True):
                known = values[place - 1]
                values[place - 1] = value if known is None else add(known, value)
        return values


async def _read_page(reader: _Reader, devices: Sequence[str]) -> list[DeviceBuckets]:
    """As many devices as fit into a page; at least one, if there is any."""
    clock = asyncio.get_running_loop().time
    end_s = clock() + _PAGE_S
    items: list[DeviceBuckets] = []
    size_bytes = 0
    for begin in range(0, len(devices), _DEVICES_AT_A_TIME):
        for item in await reader.read(devices[begin : begin + _DEVICES_AT_A_TIME]):
            size_bytes += len(orjson.dumps(item.aggregates)) + len(item.device_id)
            if items and size_bytes > _PAGE_BYTES:
                return items
            items.append(item)
        if clock() > end_s:
            return items
    return items
