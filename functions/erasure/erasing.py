"""Erases tenants in small steps, on the clock.

From its request on a tenant is closed: no door lets it in, and nothing new is made of its messages.
What is under way at that moment may still add rows and messages of it. So looks through all streams
and tables follow each other, until for some time none has found anything. Then the tenant's own row
is deleted, and a last look follows after the same time. What is deleted is deleted, so a look that
a crash or its time limit ends is begun anew.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import orjson
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.mqtt_session_records import QUEUED, SESSIONS, UNRELEASED
from functions.domain.named_sql import read_queries
from functions.erasure.streams import TenantStreams
from functions.erasure.tables import ENTRANCES, OTHER_COLUMNS, TenantTable, referring_first
from runtime import Context, RequestFailed, Unavailable

_QUERIES = read_queries(Path(__file__).with_name("queries.sql"))
_AT_A_TIME = 5_000


class ErasingSettings(BaseModel):
    """Settings of the erasing.

    Attributes:
        run_s: nothing is begun later than this after the run's beginning; the next run goes on.
        settle_s: how long looks must find nothing: longer than any function works on a message, and
            than a gateway believes an answer about a token.
        consumer_streams: streams on which a tenant's clients have consumers.
        read_streams: streams whose subjects name no tenants; each of their messages is looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_s: Annotated[float, Field(gt=0, le=600)] = 20.0
    settle_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    consumer_streams: tuple[str, ...] = (QUEUED, "POLLED")
    read_streams: tuple[str, ...] = (
        *("MAILBOX", "DEAD_LETTERS", "SMS", "EMAIL", "WEBHOOKS"),
        *(UNRELEASED, SESSIONS),
    )


# The name under which the host looks for a function's settings.
Settings = ErasingSettings


async def erase_tenants(ctx: Context[None]) -> None:
    """Go on with the erasures that are due. Several hosts may run it."""
    settings: ErasingSettings = ctx.settings
    clock = asyncio.get_running_loop().time
    end_s = clock() + settings.run_s
    settle = timedelta(seconds=settings.settle_s)
    while clock() < end_s:
        row = await ctx.postgres.fetchrow(_QUERIES["begin"], settle)
        if row is None:
            return
        erasure = _Erasure(ctx, row, lambda: clock() < end_s)
        try:
            await erasure.go_on(settle)
        except (asyncpg.PostgresError, RequestFailed, Unavailable) as failure:
            # No server's text: it may hold what is to be erased.
            kind = type(failure).__name__
            ctx.log.warning(
                "A step of a tenant's erasure failed; it is made again",
                tenant_id=row["tenant_id"],
                at=erasure.place,
                error_type=kind,
            )
            await ctx.postgres.execute(
                _QUERIES["pause"], row["tenant_id"], f"{kind} at {erasure.place}"
            )


class _Erasure:
    """One tenant's erasure.

    Attributes:
        place: the table or stream where the present step is.
    """

    def __init__(
        self,
        ctx: Context[None],
        row: Any,  # noqa: ANN401 - a row
        has_time: Callable[[], bool],
    ) -> None:
        self.place = ""
        self._ctx = ctx
        self._row = row
        self._tenant_id: str = row["tenant_id"]
        self._has_time = has_time
        self._found: Counter[str] = Counter()

    async def go_on(self, settle: timedelta) -> None:
        """Look through everything, and end the erasure if it is time."""
        pool, tenant_id = self._ctx.postgres, self._tenant_id
        if self._row["is_settling"]:
            await pool.execute(_QUERIES["postpone"], tenant_id, settle)
        elif not await self._look():
            await pool.execute(_QUERIES["pause"], tenant_id, None)
        elif self._row["tenant_deleted_at"] is not None:
            await self._end()
        elif self._found.keys() - ENTRANCES:
            await pool.execute(_QUERIES["pause"], tenant_id, None)
        elif await pool.fetchval(_QUERIES["note_clean"], tenant_id, settle):
            self.place = "tenants"
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(_QUERIES["delete_tenant"], tenant_id)
                await connection.execute(_QUERIES["note_deleted"], tenant_id)

    async def _look(self) -> bool:
        """Delete what is found in all streams and tables; False when time was up before the end.

        Streams come first: a message that is still there could become a row again.
        """
        settings: ErasingSettings = self._ctx.settings
        streams = TenantStreams(self._ctx, self._tenant_id, self._note_messages)
        self.place = "streams"
        self._found.update(await streams.purge())
        for stream in settings.consumer_streams:
            self.place = stream
            if not await streams.delete_consumers(stream, self._has_time):
                return False
        read_to = orjson.loads(self._row["read_to"])
        for stream in settings.read_streams:
            self.place = stream
            deleted, is_whole = await streams.read(stream, read_to.get(stream, 0), self._has_time)
            self._found[stream] += deleted
            if not is_whole:
                return False
        for table in await self._tables():
            self.place = table.shown
            if not await self._empty(table):
                return False
        self._found = +self._found
        return True

    async def _tables(self) -> list[TenantTable]:
        pool = self._ctx.postgres
        names, columns = zip(*OTHER_COLUMNS, strict=True)
        rows = await pool.fetch(_QUERIES["tables"], names, columns)
        references = await pool.fetch(_QUERIES["references"])
        return referring_first(
            [TenantTable(**row) for row in rows],
            [(each["referring"], each["referred"]) for each in references],
        )

    async def _empty(self, table: TenantTable) -> bool:
        """Delete the tenant's rows of a table; False when time was up before the last one."""
        count = _AT_A_TIME
        while count == _AT_A_TIME:
            if not self._has_time():
                return False
            try:
                count = await self._ctx.postgres.fetchval(
                    _QUERIES["erase_rows"],
                    *(self._tenant_id, table.name, table.of_column, _AT_A_TIME, table.shown),
                )
            except asyncpg.UndefinedTableError:
                return True  # A partition that was dropped meanwhile.
            self._found[table.shown] += count
        return True

    async def _note_messages(self, stream: str, deleted: int, read_to: int | None) -> None:
        await self._ctx.postgres.execute(
            _QUERIES["note_messages"], self._tenant_id, stream, deleted, read_to
        )

    async def _end(self) -> None:
        deleted = await self._ctx.postgres.fetchrow(_QUERIES["end"], self._tenant_id)
        if deleted is not None:
            self._ctx.log.info(
                "A tenant was erased",
                tenant_id=self._tenant_id,
                rows=sum(orjson.loads(deleted["deleted_rows"]).values()),
                messages=sum(orjson.loads(deleted["deleted_messages"]).values()),
            )


__all__ = ["ErasingSettings", "Settings", "erase_tenants"]
