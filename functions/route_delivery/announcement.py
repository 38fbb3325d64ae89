"""Tells the management API which types of destinations are delivered, and by which schema."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import structlog

from functions.domain.named_sql import read_queries
from functions.domain.secret_box import SecretBox
from runtime import Context

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

SEEN_EVERY_S = 30.0
_QUERIES = read_queries(Path(__file__).with_name("announcement.sql"))


class Announcement:
    """Announces a type, and says every half minute that it is delivered.

    Args:
        pool: the function's.
        destination_type: the type's name.
        schema: JSON schema of a configuration.
        log: the function's.
    """

    def __init__(
        self,
        pool: "Pool",
        destination_type: str,
        schema: Mapping[str, Any],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._pool = pool
        self._type = destination_type
        self._schema = orjson.dumps(schema).decode()
        self._log = log
        self._repeating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Announce the type; returns when it is stored."""
        await self._pool.execute(_QUERIES["announce"], self._type, self._schema)
        self._repeating = asyncio.create_task(self._repeat(), name=f"announce {self._type}")

    async def stop(self) -> None:
        """Say nothing any more."""
        if self._repeating is not None:
            self._repeating.cancel()
            await asyncio.wait([self._repeating])

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            try:
                await self._pool.execute(_QUERIES["seen"], self._type, self._schema)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as failure:
                # Another word follows; the jobs themselves tell that the database is away.
                self._log.debug("a type was not announced", error=type(failure).__name__)


async def check_keys(ctx: Context[Any], destination_type: str, box: SecretBox) -> None:
    """Log an error if there are routes of the type whose secrets no key opens."""
    count = await ctx.postgres.fetchval(_QUERIES["count_unreadable"], destination_type, box.known)
    if count:
        ctx.log.error(
            "The secrets of routes cannot be decrypted, so their jobs wait; correct SECRETS_KEYS",
            routes=count,
            keys=len(box.known),
        )


__all__ = ["SEEN_EVERY_S", "Announcement", "check_keys"]
