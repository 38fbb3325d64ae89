"""Detects a pooler in transaction mode, which gives each transaction another connection."""

import asyncio
import secrets
from contextlib import AsyncExitStack
from typing import Any

import asyncpg

from runtime.errors import ConfigError, Problem
from runtime.resource.postgres import connect, outages

ANSWER_LIMIT_S = 3.0
TRIES = 3
"""A busy server may deliver a notification late; one notification is proof."""


async def check_session(dsn: str) -> None:
    """Check, with a notification, that a session stays on one server connection.

    Through a pooler in transaction mode (pgbouncer, for example) LISTEN receives nothing, prepared
    statements are missing at random, and an advisory lock is never released.

    Raises:
        ConfigError: the session does not stay on one connection.
        Unavailable: PostgreSQL does not answer.
    """
    async with AsyncExitStack() as stack:
        listening, other = await connect(dsn), await connect(dsn)
        stack.callback(listening.terminate)
        stack.callback(other.terminate)
        with outages():
            is_heard = await _hears(listening, other)
    if not is_heard:
        wrong = "leads through a pooler in transaction mode: a notification did not come back"
        remedy = "use the pooler's session mode (pgbouncer: pool_mode = session), or the server"
        raise ConfigError([Problem("DATABASE_URL", "", wrong, remedy)])


async def _hears(
    listening: "asyncpg.Connection[asyncpg.Record]", other: "asyncpg.Connection[asyncpg.Record]"
) -> bool:
    heard = asyncio.Event()
    channel = f"runtime_{secrets.token_hex(8)}"

    def notice(*_: Any) -> None:  # noqa: ANN401 - the driver's, unused
        heard.set()

    try:
        await listening.add_listener(channel, notice)
        for _ in range(TRIES):
            # From another connection: the pooler may deliver it to the sender.
            await other.execute(f"NOTIFY {channel}")
            try:
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    await heard.wait()
            except TimeoutError:
                continue
            return True
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        return False  # A prepared statement was missing, or belongs to another session.
    except asyncpg.ReadOnlySQLTransactionError:
        return True  # A standby: LISTEN is not possible there, with or without a pooler.
    return False


__all__ = ["check_session"]
