"""The endpoint that registers many devices from a file."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated
from uuid import UUID

import asyncpg
import orjson
from pydantic import BaseModel, Field, StringConstraints

from functions.domain.named_sql import read_queries
from functions.management.device_tokens import DeviceSettings
from functions.management.devices import Connection, find_room, lock_tenant
from functions.management.imported_devices import (
    Decided,
    Existing,
    FileInvalidError,
    Format,
    NewDevice,
    ReadDevice,
    RefusedRow,
    decide,
    read_lines,
    read_rows,
)
from functions.management.requests import TenantRequest
from runtime import Context, Event, Reject

_QUERIES = read_queries(Path(__file__).with_name("device_import.sql"))
_MAX_ROWS = 10_000
_MAX_TEXT = 1_000_000
# With its details a refused line has up to 250 bytes, and a reply is one NATS message.
_MAX_REFUSED = 1000
_MAX_ANSWER_BYTES = 900_000

# The name under which the host looks for a function's settings.
Settings = DeviceSettings


class ImportDevices(TenantRequest):
    """A file of devices. A row that is wrong is refused by itself; the others are registered.

    Attributes:
        format: `csv`, with a first line that names the columns, or `ndjson`, an object a line. The
            columns or fields are those of a registration: device_id, site_id, and if wanted
            provision_token, metadata (in CSV a JSON object), subscription_id and sensor_limit.
        content: the file, of at most 10,000 rows.
        first_line: the number of the first line in the caller's file, for the answer.
        dry_run: check the rows, and register nothing.
    """

    format: Format
    # It may hold tokens.
    content: Annotated[str, StringConstraints(max_length=_MAX_TEXT), Field(repr=False)]
    first_line: Annotated[int, Field(ge=1, lt=2**53)] = 1
    dry_run: bool = False


class RefusedDevice(BaseModel):
    """A row that is not registered, and why."""

    line: int
    code: str
    detail: str


class DeviceImportReport(BaseModel):
    """What became of the rows: registered + existing + refused_count are all of them.

    Attributes:
        registered: devices that are new; in a dry run those that would be.
        existing: devices that were registered before with the same data.
        refused_count: all other rows.
        refused: the first thousand of these.
        tokens: the token of each new device whose row gave none; no other answer shows it.
    """

    registered: int
    existing: int
    refused_count: int
    refused: list[RefusedDevice]
    tokens: dict[str, str]


async def import_devices(event: Event[ImportDevices], ctx: Context) -> DeviceImportReport:
    """Register the devices of a file. A repeat of the request registers none twice.

    Raises:
        Reject: `FILE_INVALID` (422), because of its header or length; `ANSWER_TOO_LARGE` (422),
            because the tokens would not fit into one answer. Nothing is registered then.
    """
    wanted = event.data
    settings: DeviceSettings = ctx.settings
    try:
        # Some 100 ms for a full file, in which the host's other functions go on.
        read, refused = await asyncio.to_thread(
            lambda: read_rows(
                read_lines(wanted.format, wanted.content, wanted.first_line),
                settings.min_token_length,
                _MAX_ROWS,
            )
        )
    except FileInvalidError as fault:
        text = str(fault)
        raise Reject("FILE_INVALID", f"{text[0].upper()}{text[1:]}.", status=422) from None
    async with ctx.postgres.acquire() as connection, connection.transaction():
        await lock_tenant(connection, wanted.tenant_id)
        decided = await _decide(connection, wanted.tenant_id, read)
        report = _report(decided, refused, dry_run=wanted.dry_run)
        if not wanted.dry_run and decided.new:
            await _insert(connection, wanted.tenant_id, decided.new)
    return report


async def _decide(connection: Connection, tenant_id: str, read: Sequence[ReadDevice]) -> Decided:
    named = {device.row.subscription_id for device in read}
    rows = await connection.fetch(
        _QUERIES["existing"], tenant_id, [device.row.device_id for device in read]
    )
    found = await connection.fetch(
        _QUERIES["subscriptions"], tenant_id, [each for each in named if each is not None]
    )
    known = {row["subscription_id"] for row in found}
    room: Mapping[UUID | None, int | None] = {
        each: await find_room(connection, tenant_id, each) for each in (None, *known)
    }
    existing = {row["device_id"]: _existing(row) for row in rows}
    return await asyncio.to_thread(decide, read, existing, known, room)


def _existing(row: asyncpg.Record) -> Existing:
    metadata = orjson.loads(row["metadata"])
    data = (row["site_id"], metadata, row["subscription_id"], row["sensor_limit"])
    return Existing(data, row["provision_token_hash"])


def _report(decided: Decided, unread: Sequence[RefusedRow], *, dry_run: bool) -> DeviceImportReport:
    refused = sorted([*unread, *decided.refused])
    made = {} if dry_run else {new.row.device_id: new.made_token for new in decided.new}
    report = DeviceImportReport(
        registered=len(decided.new),
        existing=decided.existing,
        refused_count=len(refused),
        refused=[
            RefusedDevice(line=line, code=reason.reason, detail=reason.detail)
            for line, reason in refused[:_MAX_REFUSED]
        ],
        tokens={device_id: token for device_id, token in made.items() if token is not None},
    )
    if len(report.model_dump_json()) > _MAX_ANSWER_BYTES:
        text = (
            "The tokens of so many devices do not fit into one answer; send fewer rows at a time."
        )
        raise Reject("ANSWER_TOO_LARGE", text, status=422)
    return report


async def _insert(connection: Connection, tenant_id: str, new: Sequence[NewDevice]) -> None:
    await connection.execute(
        _QUERIES["insert"],
        tenant_id,
        [device.row.device_id for device in new],
        [device.row.site_id for device in new],
        [device.token_hash for device in new],
        [json.dumps(device.row.metadata) for device in new],
        [device.row.subscription_id for device in new],
        [device.row.sensor_limit for device in new],
    )


__all__ = ["DeviceImportReport", "ImportDevices", "Settings", "import_devices"]
