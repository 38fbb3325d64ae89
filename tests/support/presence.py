"""A host that watches presence, and what it says of devices."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson

from runtime.host import Host
from tests.support.host import eventually, running_host
from tests.support.ingest import TOKEN
from tests.support.mqtt import MqttSession
from tests.support.servers import NatsServer


def functions(server: NatsServer, **settings: Any) -> dict[str, Any]:
    """The functions that let devices in and watch them."""
    return {
        "device_auth": {
            "handler": "functions.device_auth:authorize",
            "endpoint": {"service": "device_auth", "subject": "$SYS.REQ.USER.AUTH"},
            "uses": ["postgres", "nats_system"],
            "settings": {"issuer": server.issuer.seed},
        },
        "watch_presence": {
            "handler": "functions.presence:watch",
            "service": True,
            "uses": ["postgres", "nats_system"],
            "settings": settings,
        },
    }


@dataclass
class Presence:
    """What the database says of devices."""

    pool: "asyncpg.Pool[asyncpg.Record]"

    async def of(self, device: str = "dev1") -> Any:
        """The device's row; None without one."""
        return await self.pool.fetchrow(
            "SELECT * FROM device_presence WHERE device_id = $1", device
        )

    async def becomes(self, status: str, device: str = "dev1", within_s: float = 60.0) -> float:
        """Wait until the device has the status; the seconds that it took."""
        began_s = time.monotonic()

        async def has() -> bool:
            row = await self.of(device)
            return row is not None and row["status"] == status

        await eventually(has, f"{device} {status}", within_s)
        return time.monotonic() - began_s

    async def events(self, device: str = "dev1") -> list[tuple[str, str]]:
        """The device's changes, oldest first."""
        rows = await self.pool.fetch(
            "SELECT status, reason FROM device_presence_events WHERE device_id = $1"
            " ORDER BY number",
            device,
        )
        return [(row["status"], row["reason"]) for row in rows]

    async def changes(self, count: int, device: str = "dev1") -> None:
        """Wait until the device has changed so often."""

        async def has() -> bool:
            row = await self.of(device)
            return row is not None and row["transitions"] >= count

        await eventually(has, f"{count} changes of {device}")

    async def messages(self) -> list[dict[str, Any]]:
        """The events that wait to be published."""
        rows = await self.pool.fetch(
            "SELECT body FROM delivery_outbox WHERE subject LIKE 'device_events.%.presence'"
            " ORDER BY outbox_id"
        )
        return [orjson.loads(row["body"]) for row in rows]

    async def watched(self) -> None:
        """Wait until somebody watches and has compared sessions."""

        async def is_compared() -> bool:
            found: bool | None = await self.pool.fetchval(
                "SELECT compared_at IS NOT NULL FROM presence_watch"
            )
            return bool(found)

        await eventually(is_compared, "a comparison of sessions")

    async def see(self, device: str = "dev1", at: datetime | None = None) -> None:
        """Note that a device has sent something."""
        await self.pool.execute(
            "INSERT INTO device_activity VALUES ('test', ARRAY[$1], ARRAY[$2::timestamptz])",
            device,
            at or datetime.now(UTC),
        )


@asynccontextmanager
async def watching(server: NatsServer, dsn: str, **settings: Any) -> AsyncIterator[Host]:
    """Run a host with the two functions."""
    async with running_host(
        server.url,
        functions(server, **settings),
        database_url=dsn,
        nats_system_url=server.system_url,
    ) as host:
        yield host


def session(server: NatsServer, device: str = "dev1", client: str = "") -> MqttSession:
    """A device's session, not begun."""
    name = f"test/{device}"
    return MqttSession(server.mqtt_port, name, TOKEN, client_id=name + client)


async def begin(server: NatsServer, device: str = "dev1", client: str = "") -> MqttSession:
    """Begin a device's session."""
    begun = await asyncio.to_thread(session(server, device, client).__enter__)
    assert begun.connected == "Success"
    return begun


async def end(begun: MqttSession) -> None:
    """End a session as a device does that is switched off in order."""
    await asyncio.to_thread(begun.__exit__, None, None, None)
