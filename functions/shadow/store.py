"""Stores shadows in PostgreSQL: one row for each shadow, changed under its row lock."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import asyncpg
import orjson

from functions.domain.named_sql import read_queries
from functions.domain.quarantine import Executor
from functions.shadow.section import Section, read_pointers
from functions.shadow.shadow import ChangeRefused, Shadow, ShadowKey

# Counted back from the message in hand, since a backlog may be old by the clock. If a note is
# dropped too early, a redelivery raises the version once more; the stamps keep the document right.
REMEMBERED_NS = 2 * 86_400 * 1_000_000_000
MAX_REMEMBERED_REQUESTS = 1000
"""Notes that a device keeps at most; a redelivery comes long before so many further messages."""
_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class StoredShadow(NamedTuple):
    """A shadow in a list."""

    name: str
    version: int
    updated_at: datetime


async def read(connection: Connection, key: ShadowKey) -> Shadow | None:
    """The shadow, which may be a deleted one; None when there never was one."""
    row = await connection.fetchrow(_QUERIES["read"], *key)
    return None if row is None else _from_row(key, row)


async def read_all(connection: Connection, tenant_id: str, device_id: str) -> list[StoredShadow]:
    """The device's shadows that are not deleted, the one without a name first."""
    rows = await connection.fetch(_QUERIES["list"], tenant_id, device_id)
    return [StoredShadow(*row) for row in rows]


async def is_registered(connection: Connection, tenant_id: str, device_id: str) -> bool:
    """Whether the registry knows the device, whatever its status."""
    known: bool = await connection.fetchval(_QUERIES["find_device"], tenant_id, device_id)
    return known


async def lock(connection: Connection, key: ShadowKey) -> Shadow | None:
    """The shadow, locked until the transaction ends; None when there never was one."""
    row = await connection.fetchrow(_QUERIES["lock"], *key)
    return None if row is None else _from_row(key, row)


async def lock_or_make(connection: Connection, key: ShadowKey, max_named: int) -> Shadow:
    """As `lock`, and a new shadow when there was none.

    Raises:
        ChangeRefused: `TOO_MANY_SHADOWS`: the device has `max_named` with a name.
        asyncpg.ForeignKeyViolationError: the registry does not know the device.
    """
    shadow = await lock(connection, key)
    if shadow is not None:
        return shadow
    if key.name:
        await connection.execute(_QUERIES["lock_device"], key.tenant_id, key.device_id)
        count = await connection.fetchval(_QUERIES["count_named"], key.tenant_id, key.device_id)
        if count >= max_named:
            raise ChangeRefused(
                "TOO_MANY_SHADOWS", f"a device may have {max_named} shadows with a name"
            )
    await connection.execute(_QUERIES["make"], *key)
    shadow = await lock(connection, key)
    if shadow is None:
        raise asyncpg.ForeignKeyViolationError("the device was deleted meanwhile")
    return shadow


async def drop_unused(connection: Connection, key: ShadowKey) -> None:
    """Remove the shadow if no change of it was ever accepted."""
    await connection.execute(_QUERIES["drop_unused"], *key)


async def save(connection: Connection, shadow: Shadow) -> None:
    """Store a locked shadow."""
    shadow.updated_at = await connection.fetchval(
        _QUERIES["save"],
        *shadow.key,
        shadow.version,
        *_dump_changed(shadow.desired),
        *_dump_changed(shadow.reported),
        shadow.last_sequence,
        shadow.last_message_ns,
        shadow.last_stamp_ns,
        shadow.deleted,
    )


async def note_request(
    connection: Connection, tenant_id: str, device_id: str, sequence: int, stored_at_ns: int
) -> bool:
    """Note that a device's message is answered; False when it was answered before.

    Another transaction with the same message waits here until this one ends.

    Raises:
        asyncpg.ForeignKeyViolationError: the registry does not know the device.
    """
    device = (tenant_id, device_id)
    noted = await connection.fetchval(_QUERIES["note_request"], *device, stored_at_ns, sequence)
    if noted is None:
        return False
    await connection.execute(
        _QUERIES["forget_requests"],
        *device,
        stored_at_ns - REMEMBERED_NS,
        MAX_REMEMBERED_REQUESTS,
    )
    return True


async def is_noted(
    executor: Executor, tenant_id: str, device_id: str, sequence: int, stored_at_ns: int
) -> bool:
    """Whether an earlier delivery of the message was answered."""
    noted: bool = await executor.fetchval(
        _QUERIES["is_noted"], tenant_id, device_id, stored_at_ns, sequence
    )
    return noted


async def forget_deleted(executor: Executor, age: timedelta, limit: int) -> int:
    """Remove at most `limit` shadows with a name that were deleted so long ago; how many."""
    status = await executor.execute(_QUERIES["forget_deleted"], age, limit)
    return int(status.rpartition(" ")[2])


def _from_row(key: ShadowKey, row: asyncpg.Record) -> Shadow:
    return Shadow(
        key,
        version=row["version"],
        desired=_section(row["desired"], row["desired_memory"]),
        reported=_section(row["reported"], row["reported_memory"]),
        last_sequence=row["last_sequence"],
        last_message_ns=row["last_message_ns"],
        last_stamp_ns=row["last_stamp_ns"],
        updated_at=row["updated_at"],
        deleted=row["deleted_at"] is not None,
        read_at_ns=row["read_at_ns"],
        read_bytes=len(row["desired"]) + len(row["reported"]),
    )


def _section(state: str, memory: str) -> Section:
    remembered = orjson.loads(memory)
    stamps = remembered.get("stamps")
    if stamps is None:
        stamps = read_pointers(remembered.get("written", {}), remembered.get("beneath", {}))
    return Section(orjson.loads(state), stamps)


def _dump_changed(section: Section) -> tuple[str | None, str | None]:
    """Values and stamps; None for what is not changed, which the database leaves as it is."""
    if not section.is_changed:
        return None, None
    return _dump(section.state()), _dump({"stamps": section.stamps})


def _dump(value: Any) -> str:  # noqa: ANN401 - any JSON
    return orjson.dumps(value).decode()
