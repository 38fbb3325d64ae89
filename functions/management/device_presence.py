"""Endpoints for the presence of devices: what it is, what it was, and a device's own timeout."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from functions.domain.named_sql import read_queries
from functions.management.devices import device_not_found
from functions.management.requests import DeviceRequest
from runtime import Context, Event

_QUERIES = read_queries(Path(__file__).with_name("device_presence.sql"))


class PresenceChange(BaseModel):
    """A change of a device's status.

    Attributes:
        number: 1 is the device's first change.
        at: when it changed: a session's beginning or end, a message, or the end of the timeout.
        last_seen_at: when the device was seen before that.
    """

    number: int
    status: Literal["online", "offline"]
    reason: str
    at: datetime
    last_seen_at: datetime | None


class DevicePresence(BaseModel):
    """Whether a device is online.

    Attributes:
        status: `never_seen` while the device has neither connected nor sent anything.
        reason: of the last change: connected, seen, disconnected, server_lost or silent.
        since: when it changed last.
        last_seen_at: its last message, or the beginning or end of its last session.
        sessions: its open MQTT sessions.
        timeout_s: the device's own timeout; null for that of the installation, which counts for a
            device without a session.
        changes: its last changes, newest first, at most 32.
    """

    status: Literal["online", "offline", "never_seen"]
    reason: str | None
    since: datetime | None
    last_seen_at: datetime | None
    sessions: int
    timeout_s: int | None
    changes: list[PresenceChange]


class SetPresenceTimeout(DeviceRequest):
    """A request for a timeout of a device's own; null for the installation's."""

    timeout_s: Annotated[int, Field(ge=15, le=31_536_000)] | None


async def get_presence(event: Event[DeviceRequest], ctx: Context) -> DevicePresence:
    """Whether a device is online, since when, and its last changes."""
    return await _presence(ctx.postgres, event.data)


async def set_presence_timeout(event: Event[SetPresenceTimeout], ctx: Context) -> DevicePresence:
    """Set after which silence a device is offline. It is judged by it within a second or two."""
    query = event.data
    device = (query.tenant_id, query.device_id)
    async with ctx.postgres.acquire() as connection, connection.transaction():
        if await connection.fetchval(_QUERIES["set_timeout"], *device, query.timeout_s) is None:
            raise device_not_found()
        await connection.execute(_QUERIES["judge_again"], *device)
        return await _presence(connection, query)


async def _presence(executor: Any, query: DeviceRequest) -> DevicePresence:  # noqa: ANN401 - pool or connection
    device = (query.tenant_id, query.device_id)
    row = await executor.fetchrow(_QUERIES["find"], *device)
    if row is None:
        raise device_not_found()
    changes = await executor.fetch(_QUERIES["changes"], *device)
    return DevicePresence(**row, changes=[PresenceChange(**change) for change in changes])


__all__ = ["DevicePresence", "PresenceChange", "get_presence", "set_presence_timeout"]
