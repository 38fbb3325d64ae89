"""Endpoints that read a device's telemetry."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import asyncpg
import orjson
from pydantic import BaseModel, Field

from functions.domain.named_sql import read_queries
from functions.domain.paging import Page, as_integer, as_time, cut, read_cursor
from functions.domain.values import Time
from functions.management.devices import device_not_found
from functions.management.requests import DeviceRequest, ListRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("telemetry.sql"))
_DEFAULT_SPAN = timedelta(days=1)
# A reply is one NATS message, and a server accepts 1 MB by default.


class TelemetryQuery(ListRequest, DeviceRequest):
    """A request for rows with `from` <= time < `to`. Default: `to` is now, `from` a day before.

    `by` says which time: that of storage, or that of the device. A row without a time of the device
    has its time of storage in both.
    """

    from_: Time | None = Field(default=None, alias="from")
    to: Time | None = None
    by: Literal["time", "device_time"] = "time"


class TelemetryRow(BaseModel):
    """One message's metrics, with the stream's stored time and sequence of the message.

    `device_time` is when the device measured, by its own clock.
    """

    time: datetime
    site_id: str
    msg_type: str
    seq: int
    metrics: dict[str, Any]
    device_time: datetime | None = None


async def get_latest_telemetry(event: Event[DeviceRequest], ctx: Context) -> TelemetryRow:
    """A device's newest row."""
    device = (event.data.tenant_id, event.data.device_id)
    row = await ctx.postgres.fetchrow(_QUERIES["latest"], *device)
    if row is None:
        await _check_device(ctx, *device)
        raise Reject("TELEMETRY_NOT_FOUND", "The device has sent no telemetry.", status=404)
    return _row(row)


async def query_telemetry(event: Event[TelemetryQuery], ctx: Context) -> Page[TelemetryRow]:
    """A device's rows in a time range, oldest first; a page may be shorter than its limit."""
    query = event.data
    end = query.to or datetime.now(UTC)
    begin = query.from_ or end - _DEFAULT_SPAN
    if begin > end:
        raise Reject("RANGE_INVALID", "`from` must not be later than `to`.", status=422)
    after_time, after_seq = read_cursor(query.cursor, as_time, as_integer)
    device = (query.tenant_id, query.device_id)
    rows = await ctx.postgres.fetch(
        _QUERIES["range" if query.by == "time" else "range_by_device_time"],
        *device,
        begin,
        end,
        after_time,
        after_seq,
        query.limit + 1,
    )
    if not rows:
        await _check_device(ctx, *device)
    items = [_row(row) for row in rows]

    def place(row: TelemetryRow) -> tuple[datetime, int]:
        time = row.time if query.by == "time" else row.device_time or row.time
        return time, row.seq

    return cut(items, query.limit, place)


async def _check_device(ctx: Context, tenant_id: str, device_id: str) -> None:
    if not await ctx.postgres.fetchval(_QUERIES["is_registered"], tenant_id, device_id):
        raise device_not_found()


def _row(row: asyncpg.Record) -> TelemetryRow:
    return TelemetryRow.model_validate({**row, "metrics": orjson.loads(row["metrics"])})
