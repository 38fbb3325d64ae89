"""Calls the functions that send messages as the host does, with their real providers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import asyncpg
import orjson
import structlog

from functions.messages.contents import Kind, QueuedEmail, QueuedSms, QueuedWebhook
from functions.messages.delivery import Sender
from runtime import Context, Event, Message
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.messaging import TENANT, make_streams

STORED_AT_NS = 1_700_000_000_000_000_000
_MODELS: dict[Kind, Any] = {"sms": QueuedSms, "email": QueuedEmail, "webhook": QueuedWebhook}
_SUBJECTS: dict[Kind, tuple[str, str]] = {
    "sms": ("SMS", "sms.send"),
    "email": ("EMAIL", "email.send"),
    "webhook": ("WEBHOOKS", "webhooks.deliver"),
}


@dataclass
class QueueWorker:
    """A function that sends messages of one kind, on one host."""

    kind: Kind
    module: ModuleType
    handler: str
    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope

    @property
    def sender(self) -> Sender:
        sender: Sender = self.scope.state
        return sender

    async def deliver(
        self,
        sequence: int = 1,
        *,
        attempt: int = 1,
        on: str | None = None,
        stored_at_ns: int = STORED_AT_NS,
        **fields: Any,
    ) -> None:
        """Call the function once with a message of the queue."""
        stream, usual = _SUBJECTS[self.kind]
        body = {"tenant_id": TENANT, "message_id": f"m{sequence}"} | fields
        message = Message(
            on or usual,
            orjson.dumps(body),
            stream=stream,
            sequence=sequence,
            attempt=attempt,
            stored_at_ns=stored_at_ns,
        )
        context: Context[Any] = Context(self.scope, message, attempt=attempt)
        event = Event(message, _MODELS[self.kind].model_validate(body))
        await getattr(self.module, self.handler)(event, context)

    async def row(self, message_id: str = "m1") -> dict[str, Any]:
        """The row of a message."""
        row = await self.pool.fetchrow("SELECT * FROM messages WHERE message_id = $1", message_id)
        assert row is not None
        return dict(row)

    async def attempts(self, message_id: str = "m1") -> list[dict[str, Any]]:
        """The attempts of a message."""
        query = "SELECT * FROM message_attempts WHERE message_id = $1 ORDER BY attempt"
        return [dict(row) for row in await self.pool.fetch(query, message_id)]


@asynccontextmanager
async def running_queue(
    broker: Broker, dsn: str, kind: Kind, module: ModuleType, handler: str, **settings: Any
) -> AsyncIterator[QueueWorker]:
    """A worker on empty streams and a new database, with the tenants `TENANT` and `other`."""
    await make_streams(broker)
    async with another_host(broker, dsn, kind, module, handler, **settings) as worker:
        await worker.pool.execute("INSERT INTO tenants (tenant_id) VALUES ($1), ('other')", TENANT)
        yield worker


@asynccontextmanager
async def another_host(
    broker: Broker, dsn: str, kind: Kind, module: ModuleType, handler: str, **settings: Any
) -> AsyncIterator[QueueWorker]:
    """A worker beside one that runs."""
    pool = await open_pool(dsn, max_size=4)
    made = module.Settings(**settings)
    scope = Scope(handler, made, broker, {"postgres": pool}, structlog.get_logger())
    context: Context[Any] = Context(scope)
    scope.state = await module.start(context)
    try:
        yield QueueWorker(kind, module, handler, pool, scope)
    finally:
        await module.stop(context)
        await pool.close()
