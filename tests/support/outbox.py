"""Runs the function that hands jobs over, as the host does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog

from functions.route_delivery.hand_over import HandOverSettings, hand_over_jobs
from functions.route_delivery.outbox import HandOver
from runtime import Context
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.resource.postgres import open_pool


def hand_over_context(pool: "asyncpg.Pool[asyncpg.Record]", broker: Any) -> Context[Any]:
    """The context of the service."""
    log = structlog.stdlib.get_logger()
    return Context(Scope("hand_over_jobs", HandOverSettings(), broker, {"postgres": pool}, log))


def hand_over_of(
    pool: "asyncpg.Pool[asyncpg.Record]", broker: Any, *, rows: int = 1000
) -> HandOver:
    """The object that moves rows, without its service."""
    return HandOver(hand_over_context(pool, broker), rows=rows, wait_s=7)


@asynccontextmanager
async def handing_over(dsn: str, broker: Broker) -> AsyncIterator[None]:
    """Run the service."""
    pool = await open_pool(dsn, max_size=4)
    ctx = hand_over_context(pool, broker)
    task = asyncio.create_task(hand_over_jobs(ctx))
    try:
        yield
    finally:
        ctx.stopping.set()
        await task
        await pool.close()
