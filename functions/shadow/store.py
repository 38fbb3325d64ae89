"""Stores shadows in PostgreSQL: one row per device, changed under its row lock."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import orjson

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor
from functions.shadow import document
from functions.shadow.document import Json, Section, delta, flatten, pick

# Counted back from the message in hand, since a backlog may be old by the clock. If a note is
# dropped too early, a redelivery raises the version once more; the stamps keep the document right.
REMEMBERED_NS = 2 * 86_400 * 1_000_000_000
_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


@dataclass(slots=True)
class Shadow:
    """One device's shadow.

    Attributes:
        version: +1 per accepted update, also across a deletion; 0 before the first update.
        last_sequence: the stream sequence of the newest applied message.
        last_stored_at_ns: the stored time of the newest applied message.
        last_stamp_ns: the newest stamp of either section.
        deleted: True when the device has no shadow at present.
    """

    tenant_id: str
    device_id: str
    version: int = 0
    desired: Section = field(default_factory=Section)
    reported: Section = field(default_factory=Section)
    last_sequence: int = 0
    last_stored_at_ns: int = 0
    last_stamp_ns: int = 0
    updated_at: datetime | None = None
    deleted: bool = True

    def delta(self) -> Json:
        """The desired values that the device has not reported."""
        return delta(self.desired.state(), self.reported.state())

    def delta_metadata(self) -> Json:
        """The time at which each value of the delta was desired."""
        return pick(self.desired.metadata(), self.delta())

    def stamp_message(self, sequence: int, stored_at_ns: int) -> int:
        """The stamp of an update that came as a stored message.

        A message is late when both its sequence and its time are before the newest message's. A
        lower sequence alone means that the stream was created again; an earlier time alone means
        that the server's clock was put back. Both are new messages, so their values win.
        """
        if sequence < self.last_sequence and stored_at_ns < self.last_stored_at_ns:
            return stored_at_ns
        self.last_sequence = sequence
        self.last_stored_at_ns = stored_at_ns
        return self._advance(stored_at_ns)

    def stamp_now(self) -> int:
        """The stamp of an update that is made now."""
        return self._advance(time.time_ns())

    def _advance(self, stamp_ns: int) -> int:
        self.last_stamp_ns = max(stamp_ns, self.last_stamp_ns + 1)
        return self.last_stamp_ns


async def read(connection: Connection, tenant_id: str, device_id: str) -> Shadow | None:
    """The device's shadow, which may be a deleted one; None when there never was one."""
    row = await connection.fetchrow(_QUERIES["read"], tenant_id, device_id)
    return None if row is None else _from_row(tenant_id, device_id, row)


async def is_registered(connection: Connection, tenant_id: str, device_id: str) -> bool:
    """Whether the registry knows the device, whatever its status."""
    known: bool = await connection.fetchval(_QUERIES["find_device"], tenant_id, device_id)
    return known


async def lock(connection: Connection, tenant_id: str, device_id: str) -> Shadow:
    """The device's shadow, locked until the transaction ends; created when there was none.

    Raises:
        asyncpg.ForeignKeyViolationError: the registry does not know the device.
    """
    await connection.execute(_QUERIES["ensure"], tenant_id, device_id)
    row = await connection.fetchrow(_QUERIES["lock"], tenant_id, device_id)
    if row is None:
        raise asyncpg.ForeignKeyViolationError("the device was deleted meanwhile")
    return _from_row(tenant_id, device_id, row)


async def save(connection: Connection, shadow: Shadow) -> None:
    """Store a locked shadow."""
    shadow.updated_at = await connection.fetchval(
        _QUERIES["save"],
        shadow.tenant_id,
        shadow.device_id,
        shadow.version,
        _dump(shadow.desired.state()),
        _dump(shadow.reported.state()),
        _dump_memory(shadow.desired),
        _dump_memory(shadow.reported),
        shadow.last_sequence,
        shadow.last_stored_at_ns,
        shadow.last_stamp_ns,
        shadow.deleted,
    )


async def note_message(
    connection: Connection, shadow: Shadow, sequence: int, stored_at_ns: int
) -> bool:
    """Note that a message is judged; False when it was judged before."""
    device = (shadow.tenant_id, shadow.device_id)
    noted = await connection.fetchval(
        _QUERIES["note_update"], *device, stored_at_ns, sequence, shadow.version
    )
    if noted is None:
        return False
    await connection.execute(_QUERIES["forget_updates"], *device, stored_at_ns - REMEMBERED_NS)
    return True


async def is_noted(
    executor: Executor, tenant_id: str, device_id: str, sequence: int, stored_at_ns: int
) -> bool:
    """Whether an earlier delivery of the message was judged."""
    noted: bool = await executor.fetchval(
        _QUERIES["is_noted"], tenant_id, device_id, stored_at_ns, sequence
    )
    return noted


def _from_row(tenant_id: str, device_id: str, row: asyncpg.Record) -> Shadow:
    return Shadow(
        tenant_id=tenant_id,
        device_id=device_id,
        version=row["version"],
        desired=_section(row["desired"], row["desired_memory"]),
        reported=_section(row["reported"], row["reported_memory"]),
        last_sequence=row["last_sequence"],
        last_stored_at_ns=row["last_stored_at_ns"],
        last_stamp_ns=row["last_stamp_ns"],
        updated_at=row["updated_at"],
        deleted=row["deleted_at"] is not None,
    )


def _section(state: str, memory: str) -> Section:
    remembered = orjson.loads(memory)
    return Section(
        leaves=dict(flatten(orjson.loads(state))),
        written=_from_pointers(remembered.get("written", {})),
        beneath=_from_pointers(remembered.get("beneath", {})),
    )


def _dump_memory(section: Section) -> str:
    return _dump(
        {"written": _to_pointers(section.written), "beneath": _to_pointers(section.beneath)}
    )


def _dump(value: Any) -> str:  # noqa: ANN401 - any JSON
    return orjson.dumps(value).decode()


def _to_pointers(stamps: dict[document.Path, int]) -> dict[str, int]:
    """Paths as JSON pointers. Source: RFC 6901."""
    return {
        "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in path): stamp
        for path, stamp in stamps.items()
    }


def _from_pointers(stamps: dict[str, int]) -> dict[document.Path, int]:
    return {
        tuple(key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]): stamp
        for pointer, stamp in stamps.items()
    }
