"""Stores sensor readings, application logs and events as rows."""

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Self, TypeAlias

from pydantic import AwareDatetime, BaseModel, Field, JsonValue, RootModel, model_validator

from runtime import Batch, Context

MAX_BYTES = 65_536
_LONGEST_SUBJECT = 256
# `sensors` below `iot` is not a kind: iot.sensors.temp names no place.
_PLACE = re.compile(r"(?:sensors|iot\.sensors|iot(?!\.sensors\.))\.([^.]+)\.(.+)")

# PostgreSQL stores no NUL in a text.
Text: TypeAlias = Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")]
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Measured: TypeAlias = Annotated[
    AwareDatetime,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(2200, 1, 1, tzinfo=UTC)),
]


class Reading(BaseModel):
    """One reading: a number, or whether something was detected. Other fields are not stored."""

    value: Number | None = None
    detected: Annotated[bool, Field(strict=True)] | None = None
    unit: Text | None = None
    device_id: Text | None = None
    location: Text | None = None
    timestamp: Measured | None = None

    @model_validator(mode="after")
    def _has_a_result(self) -> Self:
        if self.value is None and self.detected is None:
            raise ValueError("a reading has `value` or `detected`")
        return self


class Happening(RootModel[dict[str, JsonValue]]):
    """An event: a JSON object that PostgreSQL can store."""

    @model_validator(mode="after")
    def _is_storable(self) -> Self:
        if not is_storable(self.root):
            raise ValueError("a text with NUL, or a number beyond 64-bit floating point")
        return self


async def store_readings(batch: Batch[Reading], ctx: Context) -> None:
    """Stores readings of sensors.{kind}.{place} and iot.sensors.{kind}.{device}, one row each."""
    rows: list[tuple[object, ...]] = []
    for event in batch:
        reading, found = event.data, split_subject(event.subject)
        if found is None:
            batch.reject(event, "BAD_SUBJECT", "the subject names no kind and place of a sensor")
            continue
        rows.append(
            (event.stream, event.sequence, event.stored_at, *found, reading.value, reading.detected,
             reading.unit, reading.device_id, reading.location, reading.timestamp)
        )  # fmt: skip
    # The key of a row is its message's place in the stream: one that comes again adds no row.
    await ctx.postgres.executemany(
        "INSERT INTO readings (stream, sequence, stored_at, kind, place, value, detected, unit,"
        " device_id, location, measured_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
        " ON CONFLICT DO NOTHING",
        rows,
    )


async def store_logs(batch: Batch[bytes], ctx: Context) -> None:
    """Stores lines of logs.{source}, which are UTF-8 text of any form."""
    rows: list[tuple[object, ...]] = []
    for event in batch:
        line = read_line(event.data)
        if not is_name(event.subject):
            batch.reject(event, "BAD_SUBJECT", "the subject is too long or not printable")
        elif line is None:
            batch.reject(event, "NO_LINE", f"not UTF-8 text, or above {MAX_BYTES} bytes")
        else:
            source = event.subject.removeprefix("logs.")
            rows.append((event.sequence, event.stored_at, source, line))
    await ctx.postgres.executemany(
        "INSERT INTO log_lines (sequence, stored_at, source, line) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT DO NOTHING",
        rows,
    )


async def store_events(batch: Batch[Happening], ctx: Context) -> None:
    """Stores events of events.{name}, one row each."""
    rows: list[tuple[object, ...]] = []
    for event in batch:
        if not is_name(event.subject):
            batch.reject(event, "BAD_SUBJECT", "the subject is too long or not printable")
        elif len(event.raw) > MAX_BYTES:
            batch.reject(event, "TOO_LARGE", f"an event has at most {MAX_BYTES} bytes")
        else:
            name = event.subject.removeprefix("events.")
            rows.append((event.sequence, event.stored_at, name, event.data.model_dump_json()))
    await ctx.postgres.executemany(
        "INSERT INTO events (sequence, stored_at, name, data) VALUES ($1, $2, $3, $4::text::jsonb)"
        " ON CONFLICT DO NOTHING",
        rows,
    )


def split_subject(subject: str) -> tuple[str, str] | None:
    """Kind and place of a reading's subject; None when it does not name both."""
    found = _PLACE.fullmatch(subject)
    return (found[1], found[2]) if found and is_name(subject) else None


def is_name(subject: str) -> bool:
    """Whether a subject can be stored: short, and neither control characters nor broken UTF-8."""
    return len(subject) <= _LONGEST_SUBJECT and subject.isprintable()


def read_line(data: bytes) -> str | None:
    """The text of a log line; None when it is too long or cannot be stored."""
    if len(data) > MAX_BYTES or b"\x00" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def is_storable(value: JsonValue) -> bool:
    """Whether PostgreSQL's jsonb takes a value."""
    if isinstance(value, str):
        return "\x00" not in value
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(is_storable(key) and is_storable(each) for key, each in value.items())
    return not isinstance(value, list) or all(map(is_storable, value))
