"""The service that publishes jobs: wakes when some are queued, and looks each second besides."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from functions.domain.outbox import CHANNEL
from functions.route_delivery.outbox import HandOver, fold_counts
from runtime import Context, Unavailable

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

_OUTAGES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, Unavailable)
_LOOK_EVERY_S = 1.0


class HandOverSettings(BaseModel):
    """Settings of the hand-over.

    Attributes:
        rows: the most jobs that are published together.
        repeat_wait_s: how long a deliverer lets a job wait that was published before, without a
            confirmation: the time in which an attempt at its other copy has ended.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Annotated[int, Field(ge=1, le=10_000)] = 1000
    repeat_wait_s: Annotated[float, Field(ge=0, le=3600)] = 30.0


# The name under which the host looks for a function's settings.
Settings = HandOverSettings


async def hand_over_jobs(ctx: Context) -> None:
    """Publish what is queued until the host drains. Several hosts take turns."""
    settings: HandOverSettings = ctx.settings
    hand_over = HandOver(ctx, rows=settings.rows, wait_s=settings.repeat_wait_s)
    queued = asyncio.Event()
    listener = asyncio.create_task(_listen(ctx.postgres, queued))
    stopper = asyncio.create_task(_set_with(ctx.stopping, queued))
    outage = False
    try:
        while not ctx.stopping.is_set():
            queued.clear()
            try:
                goes_on = await hand_over.move()
                if not goes_on:
                    await fold_counts(ctx.postgres)
            except _OUTAGES as failure:
                goes_on = False
                if not outage:
                    ctx.log.warning(
                        "Jobs wait, because a server is away; none is lost",
                        error_type=type(failure).__name__,
                    )
                outage = True
            else:
                outage = False
            if not goes_on:
                # While nothing is taken, a new job is no reason to try again at once.
                is_held_up = outage or hand_over.is_stuck
                await _wait(ctx.stopping if is_held_up else queued)
    finally:
        for task in (listener, stopper):
            task.cancel()
        await asyncio.gather(listener, stopper, return_exceptions=True)


async def _wait(event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_EVERY_S):
            await event.wait()


async def _set_with(stopping: asyncio.Event, queued: asyncio.Event) -> None:
    await stopping.wait()
    queued.set()


async def _listen(pool: "Pool", queued: asyncio.Event) -> None:
    """Set `queued` at every notification; where none comes through, the look each second helps."""
    while True:
        # An outage: the other connections tell of it.
        with suppress(*_OUTAGES):
            async with pool.acquire() as connection:
                await _hear(connection, queued)
        await asyncio.sleep(_LOOK_EVERY_S)


async def _hear(
    connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]", queued: asyncio.Event
) -> None:
    lost = asyncio.Event()

    def on_lost(_: object) -> None:
        lost.set()

    def on_notification(*_: object) -> None:
        queued.set()

    connection.add_termination_listener(on_lost)
    await connection.add_listener(CHANNEL, on_notification)
    try:
        queued.set()
        await lost.wait()
    finally:
        if not connection.is_closed():
            connection.remove_termination_listener(on_lost)
            await asyncio.wait_for(
                connection.remove_listener(CHANNEL, on_notification), _LOOK_EVERY_S
            )


__all__ = ["HandOverSettings", "Settings", "hand_over_jobs"]
