"""The endpoint that imports telemetry of the past, some thousand rows at a time."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.admission import Refused
from functions.domain.identifiers import TenantId
from functions.domain.named_sql import read_queries
from functions.domain.registry import DeviceKey, RegisteredDevice, find_devices
from functions.domain.rollup_marks import add_marks
from functions.ingest.checks import Limits
from functions.ingest.imported_rows import Period, ReadRow, judge_row, read_row
from functions.ingest.plan import DiscoveredSensor, Row
from functions.ingest.writing import insert_rows, register_sensors
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("importing.sql"))
_MAX_LINES = 5000
# With its details a refused line has up to 250 bytes, and a reply is one NATS message.
_MAX_REFUSED = 1000


class ImportSettings(BaseModel):
    """Limits of imported rows; the first four are those of `ingest`.

    Attributes:
        max_age_days: how old a row may be. Each day is a partition of the table, and thousands of
            them would slow down every query.
        keep_days: days after which the installation drops rows; 0 for never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_payload_bytes: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    max_metrics: Annotated[int, Field(ge=0, le=1000)] = 50
    max_metric_key_length: Annotated[int, Field(ge=1, le=512)] = 128
    require_subscription: bool = True
    max_age_days: Annotated[int, Field(ge=1, le=3650)] = 400
    keep_days: Annotated[int, Field(ge=0, le=36_500)] = 0

    def limits(self) -> Limits:
        """The limits that the checks use."""
        return Limits(
            self.max_payload_bytes,
            self.max_metrics,
            self.max_metric_key_length,
            require_subscription=self.require_subscription,
        )


# The name under which the host looks for a function's settings.
Settings = ImportSettings


class ImportRequest(BaseModel):
    """Rows to import. One that is wrong is refused by itself; the others are written.

    Attributes:
        rows: objects with `device_id`, `time` (RFC 3339 with a zone), `metrics`, and if wanted
            `site_id` and `msg_type`, by default the device's site and `telemetry`.
        first_line: the number of the first row in the caller's file, for the answer.
        dry_run: check the rows, and write nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant_id: TenantId
    rows: Annotated[list[Any], Field(min_length=1, max_length=_MAX_LINES)]
    first_line: Annotated[int, Field(ge=1, lt=2**53)] = 1
    dry_run: bool = False


class RefusedLine(BaseModel):
    """A row that is not written, and why."""

    line: int
    code: str
    detail: str


class ImportReport(BaseModel):
    """What became of the rows: accepted + refused_count are all of them.

    Attributes:
        accepted: rows that passed the checks.
        written: the accepted ones that were not there before; 0 in a dry run.
        refused_count: the rows that did not pass.
        refused: the first thousand of these.
    """

    accepted: int
    written: int
    refused_count: int
    refused: list[RefusedLine]


class _Judged(NamedTuple):
    rows: list[Row]
    refused: list[RefusedLine]
    discovered: list[DiscoveredSensor]


async def import_telemetry(event: Event[ImportRequest], ctx: Context) -> ImportReport:
    """Write rows of the past, each once however often it is sent. They make no route jobs.

    Raises:
        Reject: `TELEMETRY_BUSY`, 503: others hold the table. Nothing is written.
    """
    wanted = event.data
    settings: ImportSettings = ctx.settings
    now = datetime.now(UTC)
    floor = await ctx.postgres.fetchval(_QUERIES["floor"], wanted.tenant_id)
    period = _period(settings, now, floor)
    read = [read_row(wanted.tenant_id, content, period) for content in wanted.rows]
    keys = {row.topic[:2] for row in read if isinstance(row, ReadRow)}
    devices = await find_devices(ctx.postgres, keys) if keys else {}
    judged = _judge(read, devices, settings.limits(), now, wanted.first_line)
    written = 0
    if judged.rows and not wanted.dry_run:
        try:
            await _ensure_days(ctx, {row.time.date() for row in judged.rows})
            written = await _write(ctx, judged)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            raise Reject(
                "TELEMETRY_BUSY", "The telemetry table is in use; try again.", status=503
            ) from None
    return ImportReport(
        accepted=len(judged.rows),
        written=written,
        refused_count=len(judged.refused),
        refused=judged.refused[:_MAX_REFUSED],
    )


def _period(settings: ImportSettings, now: datetime, floor: datetime | None) -> Period:
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    days = min(settings.max_age_days, settings.keep_days or settings.max_age_days)
    begin = today - timedelta(days=days)
    return Period(begin if floor is None else max(begin, floor), now)


def _judge(
    read: Iterable[ReadRow | Refused],
    devices: dict[DeviceKey, RegisteredDevice],
    limits: Limits,
    now: datetime,
    first_line: int,
) -> _Judged:
    judged = _Judged([], [], [])
    known: set[tuple[str, str]] = set()
    for line, reading in enumerate(read, first_line):
        if isinstance(reading, Refused):
            judged.refused.append(_refused(line, reading))
            continue
        row = judge_row(reading, devices, limits, now)
        if isinstance(row, Refused):
            judged.refused.append(_refused(line, row))
            continue
        judged.rows.append(row)
        device = devices[(row.tenant_id, row.device_id)]
        for sensor in reading.metrics:
            if sensor not in device.sensors and (row.device_id, sensor) not in known:
                known.add((row.device_id, sensor))
                found = DiscoveredSensor(device, row.tenant_id, row.device_id, sensor, row.time)
                judged.discovered.append(found)
    return judged


def _refused(line: int, refused: Refused) -> RefusedLine:
    return RefusedLine(line=line, code=refused.reason, detail=refused.detail)


async def _ensure_days(ctx: Context, days: set[date]) -> None:
    """Make the partitions of the days, one at a time, so that no lock is held for long."""
    for missing in await ctx.postgres.fetch(_QUERIES["missing_days"], list(days)):
        async with ctx.postgres.acquire() as connection, connection.transaction():
            await connection.execute(_QUERIES["limit_lock_wait"])
            await connection.fetchval(_QUERIES["ensure_day"], missing["day"])


async def _write(ctx: Context, judged: _Judged) -> int:
    async with ctx.postgres.acquire() as connection, connection.transaction():
        written = await insert_rows(connection, judged.rows)
        if written:
            await add_marks(connection, judged.rows)
        if judged.discovered:
            await register_sensors(connection, judged.discovered)
    return written.total()


__all__ = ["ImportReport", "ImportRequest", "ImportSettings", "Settings", "import_telemetry"]
