"""The transitions of commands, each with the messages that it sends, in one transaction.

Every change of a status is made here, and adds an event of the device. A command that is to be sent
is a row of the outbox of the transaction that says so, so it is sent whatever ends next.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import orjson

from functions.commands.lifecycle import AckStatus, leaves
from functions.domain.device_events import COMMAND_STATE, NewEvent, add_events
from functions.domain.downlinks import COMMANDS, NewDownlink, SentCommand, add_downlinks
from functions.domain.named_sql import read_queries

if TYPE_CHECKING:
    from datetime import datetime

    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

QUERIES = read_queries(Path(__file__).with_name("queries.sql"))
SEND_AGAIN_S = (5, 15, 30, 60, 120, 300)
"""Seconds from each send of a command to the next one; the last one is repeated."""
SENT_REST_S = 30
"""A command that its door has confirmed is not sent again sooner: its answer may be on its way."""


class Wanted(NamedTuple):
    """A command to make."""

    command_id: str
    tenant_id: str
    device_id: str
    name: str
    arguments: str
    expires_in_s: int
    timeout_s: int
    in_order: bool


async def add_command(pool: "Pool", wanted: Wanted, max_open: int) -> asyncpg.Record | None:
    """Store a command and send it, unless it waits for another one.

    Returns:
        Its row; None when the device has a command with this id, or the tenant has `max_open`
        commands under way.
    """
    *before, in_order = wanted
    async with pool.acquire() as connection, connection.transaction():
        if in_order:
            await connection.execute(QUERIES["lock_order"], wanted.tenant_id, wanted.device_id)
        row = await connection.fetchrow(
            QUERIES["insert"], *before, max_open, in_order, SEND_AGAIN_S[0]
        )
        if row is not None:
            await _announce(connection, [{**row, "at": row["created_at"]}])
            if row["sends"]:
                await _send(connection, [row])
    return row


async def mark_sent(pool: "Pool", commands: Sequence[SentCommand]) -> int:
    """Note that a door has handed over commands; how many of them were queued."""
    keys = sorted({(each.tenant_id, each.device_id, each.command_id) for each in commands})
    if not keys:
        return 0
    async with pool.acquire() as connection, connection.transaction():
        rows = await connection.fetch(
            QUERIES["mark_sent"], *map(list, zip(*keys, strict=True)), SENT_REST_S
        )
        await _announce(connection, rows)
    return len(rows)


async def cancel(pool: "Pool", tenant_id: str, device_id: str, command_id: str) -> Any:  # noqa: ANN401 - a row
    """Cancel a command that has not ended; its row, or None."""
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(QUERIES["cancel"], tenant_id, device_id, command_id)
        if row is not None:
            await _announce(connection, [row])
            if row["in_order"]:
                await _release(connection, tenant_id, device_id)
    return row


async def advance(
    connection: "Connection",
    key: tuple[str, str, str],
    answer: AckStatus,
    result: str | None,
    came_at: "datetime",
) -> None:
    """Set a command to what its device answers, in the caller's transaction.

    Args:
        connection: in the transaction that notes the answer.
        key: tenant, device and command.
        answer: the device's.
        result: as JSON.
        came_at: when the answer was stored first.
    """
    row = await connection.fetchrow(
        QUERIES["advance"], *key, answer, result, list(leaves(answer)), came_at
    )
    if row is None:
        return
    await _announce(connection, [row])
    if row["lets_next"]:
        await _release(connection, *key[:2])


async def end_overdue(pool: "Pool", most: int, until: "datetime | None" = None) -> list[str]:
    """End commands whose time is up, and was up at `until`; the new status of each.

    Their followers wait for a tick.
    """
    async with pool.acquire() as connection, connection.transaction():
        rows = await connection.fetch(QUERIES["end_overdue"], most, until)
        await _announce(connection, rows)
    return [row["status"] for row in rows]


async def send_due(pool: "Pool", most: int) -> int:
    """Send the commands that are due; how many they were."""
    async with pool.acquire() as connection, connection.transaction():
        rows = await connection.fetch(QUERIES["take_due"], most, list(SEND_AGAIN_S))
        await _send(connection, rows)
    return len(rows)


async def release_all(pool: "Pool") -> None:
    """Send the commands in order that wait for nothing any more."""
    async with pool.acquire() as connection, connection.transaction():
        await _send(connection, await connection.fetch(QUERIES["release_all"], SEND_AGAIN_S[0]))


async def _release(connection: "Connection", tenant_id: str, device_id: str) -> None:
    await _send(
        connection,
        await connection.fetch(QUERIES["release"], tenant_id, device_id, SEND_AGAIN_S[0]),
    )


async def _send(connection: "Connection", rows: Sequence[Any]) -> None:
    await add_downlinks(
        connection,
        [
            NewDownlink(
                row["tenant_id"],
                row["device_id"],
                COMMANDS,
                orjson.dumps(content_of(row)),
                f"command-{row['number']}-send-{row['sends']}",
                row["command_id"],
            )
            for row in sorted(rows, key=lambda row: row["number"])
        ],
    )


async def _announce(connection: "Connection", rows: Iterable[Any]) -> None:
    await add_events(
        connection,
        [
            NewEvent(
                row["tenant_id"],
                row["device_id"],
                COMMAND_STATE,
                f"command-{row['number']}-{row['version']}",
                {
                    "command_id": row["command_id"],
                    "name": row["name"],
                    "status": row["status"],
                    "version": row["version"],
                    "result": load(row["result"]),
                    "at": row["at"],
                },
            )
            for row in rows
        ],
    )


def content_of(row: Any) -> dict[str, Any]:  # noqa: ANN401 - a row
    """What the device gets of a command, by every door.

    `expires_at`: do not run it later. `timeout_s`: for so long its final answer is waited for.
    """
    return {
        "command_id": row["command_id"],
        "name": row["name"],
        "arguments": orjson.loads(row["arguments"]),
        "expires_at": row["expires_at"],
        "timeout_s": row["timeout_s"],
    }


def load(text: str | None) -> Any:  # noqa: ANN401 - any JSON
    """The value of a jsonb column; whole numbers beyond 64 bits are floats again."""
    return None if text is None else orjson.loads(text)


__all__ = [
    "QUERIES",
    "SEND_AGAIN_S",
    "SENT_REST_S",
    "Wanted",
    "add_command",
    "advance",
    "cancel",
    "content_of",
    "end_overdue",
    "load",
    "mark_sent",
    "release_all",
    "send_due",
]
