"""A started function of a route type, on a database with the attempt log."""

import asyncio
import importlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import asyncpg
import structlog

from functions.route_delivery import Job
from runtime import Context, Event, Message
from runtime.context import Scope
from runtime.resource.postgres import open_pool

PAYLOAD: Any = {"metrics": {"temp": 21.5}, "provision_token": "the-devices-secret"}


@dataclass
class RouteTypeFunction:
    """Delivers jobs of a tenant of its own.

    Attributes:
        tenant_id: nobody else's.
    """

    module: ModuleType
    pool: "asyncpg.Pool[asyncpg.Record]"
    scope: Scope
    type_name: str
    tenant_id: str

    async def add_tenant(self) -> str:
        """Another tenant; its id."""
        return await add_tenant(self.pool)

    async def add_route(self, config: dict[str, Any]) -> str:
        """A route of the tenant; its id."""
        return str(
            await self.pool.fetchval(
                "INSERT INTO message_routes"
                " (tenant_id, name, topic_filter, destination_type, destination_config)"
                " VALUES ($1, gen_random_uuid()::text, 'tenant/#', $2, $3::text::jsonb)"
                " RETURNING id",
                self.tenant_id,
                self.type_name,
                json.dumps(config),
            )
        )

    async def deliver(
        self, route_id: str, *, job_id: str = "T-1-1-r", payload: Any = None, attempt: int = 1
    ) -> None:
        """Deliver a job as the host would."""
        job = Job(
            job_id=job_id,
            route_id=route_id,
            tenant_id=self.tenant_id,
            device_id="dev1",
            topic=f"tenant/{self.tenant_id}/device/dev1/telemetry",
            msg_type="telemetry",
            payload=PAYLOAD if payload is None else payload,
            stored_at=datetime(2026, 8, 1, tzinfo=UTC),
        )
        message = Message(f"routes.{self.tenant_id}.{self.type_name}", b"", stream="ROUTES")
        context: Context[Any] = Context(self.scope, message, attempt=attempt)
        await self.module.deliver(Event(message, job), context)

    async def attempts(self) -> list[dict[str, Any]]:
        """The rows of the attempt log."""
        rows = await self.pool.fetch(
            "SELECT * FROM delivery_attempts WHERE tenant_id = $1 ORDER BY job_id, attempt",
            self.tenant_id,
        )
        return [dict(row) for row in rows]

    async def forget(self) -> None:
        """What a host that dies before it has logged an attempt leaves behind: nothing."""
        await self.pool.execute("DELETE FROM delivery_jobs WHERE tenant_id = $1", self.tenant_id)


async def add_tenant(pool: "asyncpg.Pool[asyncpg.Record]") -> str:
    """A new tenant; its id."""
    tenant_id = f"t{secrets.token_hex(6)}"
    await pool.execute("INSERT INTO tenants (tenant_id) VALUES ($1)", tenant_id)
    return tenant_id


@asynccontextmanager
async def started(
    type_name: str, module_name: str, settings: dict[str, Any], dsn: str, *, broker: Any = None
) -> AsyncIterator[RouteTypeFunction]:
    """The function between its `start` and its `stop`, which may take 2 s."""
    module = importlib.import_module(module_name)
    pool = await open_pool(dsn, max_size=4)
    tenant_id = await add_tenant(pool)
    scope = Scope(
        function=f"deliver_{type_name}",
        settings=module.Settings(**settings),
        broker=broker,
        resources={"postgres": pool},
        log=structlog.get_logger(),
    )
    scope.state = await module.start(Context(scope))
    try:
        yield RouteTypeFunction(module, pool, scope, type_name, tenant_id)
    finally:
        async with asyncio.timeout(2):
            await module.stop(Context(scope))
        await pool.close()
