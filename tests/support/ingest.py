"""Calls the ingest function as the host does, on a new database."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import structlog

from functions.ingest import IngestSettings, IngestState, ingest, start, stop
from runtime import Batch, Context, Event, Message
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.resource.postgres import open_pool

STORED_AT_NS = 1_700_000_000_123_456_789
TOKEN = "tok"
GOOD: dict[str, Any] = {"site_id": "s1", "provision_token": TOKEN, "metrics": {"temp": 22}}


def raw(sequence: int, body: Any = None, subject: str = "telemetry.test.dev1") -> Message:
    """A delivery of a raw payload; one second after the previous one, so no rate is exceeded."""
    data = body if isinstance(body, bytes) else json.dumps(GOOD if body is None else body).encode()
    return Message(
        subject,
        data,
        {"Nats-Msg-Id": f"id-{sequence}"},
        stream="TELEMETRY",
        sequence=sequence,
        stored_at_ns=STORED_AT_NS + sequence * 1_000_000_000,
    )


@dataclass
class Ingest:
    """A started ingest function."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope

    @property
    def state(self) -> IngestState:
        state: IngestState = self.scope.state
        return state

    async def run(self, *messages: Message) -> None:
        """Call the function once; after a failure the messages count as repeated."""
        try:
            await ingest(Batch([Event(each, each.data) for each in messages]), self.context)
        except BaseException:
            for message in messages:
                message.called_before = True
            raise

    @property
    def context(self) -> Context[IngestState]:
        return Context(self.scope)

    async def rows(self) -> list[Any]:
        """All telemetry, in the stream's order."""
        return await self.pool.fetch("SELECT *, metrics::text AS text FROM telemetry ORDER BY seq")

    async def quarantined(self) -> dict[int, Any]:
        """All rows of the quarantine, by sequence."""
        rows = await self.pool.fetch("SELECT * FROM quarantine_events")
        assert len(rows) == len({row["sequence"] for row in rows})
        return {row["sequence"]: row for row in rows}

    async def counts(self) -> tuple[int, int]:
        """The number of rows and of quarantined messages."""
        return len(await self.rows()), len(await self.quarantined())

    async def restart(self) -> None:
        """Start anew, as another host does, or this host after a crash."""
        await stop(self.context)
        self.scope.state = await start(self.context)


async def register(
    pool: "asyncpg.Pool[asyncpg.Record]", *, tenant: str = "test", device: str = "dev1"
) -> None:
    """Register a tenant with a subscription and one device at site s1 with token `tok`."""
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant)
    await pool.execute(
        "INSERT INTO subscriptions (tenant_id, starts_at) SELECT $1::text, '2000-01-01Z'"
        " WHERE NOT EXISTS (SELECT 1 FROM subscriptions WHERE tenant_id = $1::text)",
        tenant,
    )
    await pool.execute(
        "INSERT INTO device_registry (tenant_id, device_id, site_id, provision_token_hash)"
        " VALUES ($1, $2, 's1', $3)",
        tenant,
        device,
        hashlib.sha256(TOKEN.encode()).digest(),
    )


@asynccontextmanager
async def started(dsn: str, broker: Broker, **settings: Any) -> AsyncIterator[Ingest]:
    """The function between its `start` and `stop`."""
    pool = await open_pool(dsn, max_size=5)
    log = structlog.stdlib.get_logger()
    scope = Scope("ingest", IngestSettings(**settings), broker, {"postgres": pool}, log)
    running = Ingest(pool, scope)
    scope.state = await start(running.context)
    try:
        yield running
    finally:
        await stop(running.context)
        await pool.close()
