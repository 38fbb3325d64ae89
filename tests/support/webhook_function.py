"""The webhook function on a database, called as the host calls it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import structlog

from functions.outbound.webhook_sender import WebhookSettings
from functions.route_delivery.delivery import REPLAY_HEADER
from functions.route_delivery.job import Job
from functions.route_delivery.webhook import deliver, start, stop
from runtime import Context, Event, Message
from runtime.context import Scope
from runtime.resource.postgres import open_pool

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SETTINGS = WebhookSettings(allowed_networks="127.0.0.0/8, ::1/128", timeout_s=5.0)


@dataclass
class WebhookFunction:
    """A started webhook function on a new database, with one tenant."""

    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope

    async def add_route(self, url: str, *, kind: str = "webhook", **config: Any) -> str:
        return str(
            await self.pool.fetchval(
                "INSERT INTO message_routes"
                " (tenant_id, name, topic_filter, destination_type, destination_config)"
                " VALUES ('test', gen_random_uuid()::text, 'tenant/#', $1, $2::text::jsonb)"
                " RETURNING id",
                kind,
                json.dumps({"url": url, "secret": SECRET} | config),
            )
        )

    async def deliver(self, route_id: str, *, job_id: str = "T-1-1-r", **fields: Any) -> None:
        job = Job(
            job_id=job_id,
            route_id=route_id,
            tenant_id=fields.pop("tenant_id", "test"),
            device_id="dev1",
            topic="tenant/test/device/dev1/telemetry",
            msg_type="telemetry",
            payload=fields.pop("payload", {"metrics": {"temp": 22}}),
            stored_at=fields.pop("stored_at", datetime(2026, 8, 1, tzinfo=UTC)),
            is_test=fields.pop("is_test", False),
        )
        attempt = fields.pop("attempt", 1)
        replay_id = fields.pop("replay_id", None)
        message = Message(
            fields.pop("subject", "routes.test.webhook"),
            job.model_dump_json().encode(),
            {
                **({REPLAY_HEADER: replay_id} if replay_id else {}),
                **fields.pop("headers", {}),
            },
            stream="ROUTES",
            sequence=fields.pop("sequence", 0),
        )
        context: Context = Context(self.scope, message, attempt=attempt)
        await deliver(Event(message, job), context)

    async def attempts(self) -> list[dict[str, Any]]:
        rows = await self.pool.fetch("SELECT * FROM delivery_attempts ORDER BY job_id, attempt")
        return [dict(row) for row in rows]

    async def job_status(self) -> str:
        return str(await self.pool.fetchval("SELECT status FROM delivery_jobs"))


@asynccontextmanager
async def started(dsn: str) -> AsyncIterator[WebhookFunction]:
    """The function between its `start` and `stop`, with the tenants `test` and `other`."""
    pool = await open_pool(dsn, max_size=4)
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ('test'), ('other')")
    scope = Scope(
        function="deliver_webhook",
        settings=SETTINGS,
        broker=None,  # type: ignore[arg-type] # deliveries publish nothing
        resources={"postgres": pool},
        log=structlog.get_logger(),
    )
    scope.state = await start(Context(scope))
    yield WebhookFunction(pool, scope)
    await stop(Context(scope))
    await pool.close()
