"""Marks that tell which roll-ups of telemetry have to be computed again.

Whoever writes telemetry adds the marks of its rows in the same transaction. `roll_up` computes what
is marked, and removes the mark in the transaction of its result. So at any moment a bucket without
a mark is right, and a reader takes marked ones from the rows.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

from functions.domain.named_sql import read_queries

_QUERIES = read_queries(Path(__file__).with_name("rollup_marks.sql"))
_MINUTE = timedelta(minutes=1)


class Connection(Protocol):
    """A connection, inside of the caller's transaction."""

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement."""


class Measured(Protocol):
    """What a mark needs to know of a row of table `telemetry`."""

    @property
    def time(self) -> datetime:
        """The row's time, in UTC."""

    @property
    def tenant_id(self) -> str:
        """The tenant."""

    @property
    def device_id(self) -> str:
        """The device."""


class Mark(NamedTuple):
    """Minutes of one hour in which devices of a tenant have new rows.

    Attributes:
        tenant_id: the tenant.
        device_ids: the devices, separated by commas, which no id contains.
        from_at: the first minute's beginning.
        to_at: the last minute's end.
    """

    tenant_id: str
    device_ids: str
    from_at: datetime
    to_at: datetime


def marks_of(rows: Sequence[Measured]) -> list[Mark]:
    """The marks of new rows: one for each tenant and hour."""
    times = [row.time for row in rows]
    first, last = min(times), max(times)
    if _hour(first) == _hour(last):
        return _of_hour(rows, first, last)
    by_hour: defaultdict[datetime, list[Measured]] = defaultdict(list)
    for row in rows:
        by_hour[_hour(row.time)].append(row)
    return [
        mark
        for of_hour in by_hour.values()
        for mark in _of_hour(
            of_hour, min(row.time for row in of_hour), max(row.time for row in of_hour)
        )
    ]


def _of_hour(rows: Iterable[Measured], first: datetime, last: datetime) -> list[Mark]:
    devices: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        devices[row.tenant_id].add(row.device_id)
    from_at = first.replace(second=0, microsecond=0)
    to_at = last.replace(second=0, microsecond=0) + _MINUTE
    return [
        Mark(tenant_id, ",".join(of_tenant), from_at, to_at)
        for tenant_id, of_tenant in devices.items()
    ]


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


async def add_marks(connection: Connection, rows: Sequence[Measured]) -> None:
    """Mark the minutes of rows that the caller's transaction adds."""
    if rows:
        marks = marks_of(rows)
        await connection.execute(_QUERIES["add_marks"], *map(list, zip(*marks, strict=True)))


__all__ = ["Connection", "Mark", "Measured", "add_marks", "marks_of"]
