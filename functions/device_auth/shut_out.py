"""Devices that may not come in for a while, on all hosts."""

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import structlog

from functions.domain.topics import is_device_id, is_tenant_id

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

CHANNEL = "device_shut_out"
"""PostgreSQL's channel on which hosts tell each other."""

Device = tuple[str, str]
_FORGOTTEN = timedelta(days=1)
_PARTS = 3


@dataclass(slots=True)
class Blocked:
    """Devices that may not come back yet: for twice as long each time, and at most for a day.

    Attributes:
        duration: how long the first time, and after a day without another one.
    """

    duration: timedelta
    _until: dict[Device, tuple[datetime, timedelta]] = field(default_factory=dict, init=False)

    def add(self, device: Device, now: datetime) -> None:
        """Block the device from now on."""
        self._until = {
            each: known for each, known in self._until.items() if known[0] > now - _FORGOTTEN
        }
        _, before = self._until.get(device, (now, self.duration / 2))
        duration = max(self.duration, min(before * 2, _FORGOTTEN))
        self._until[device] = now + duration, duration

    def has(self, device: Device, now: datetime) -> bool:
        """Whether the device is blocked."""
        known = self._until.get(device)
        return known is not None and known[0] > now


class ShutOut:
    """Blocks devices here, and tells the other hosts, to which their next logins may go.

    Which host finds that a device sends too much is chance, as is which one it asks. A message that
    is lost leaves the device blocked at the host that found it.
    """

    def __init__(
        self, pool: "Pool", log: structlog.stdlib.BoundLogger, duration: timedelta
    ) -> None:
        self._pool = pool
        self._log = log
        self._blocked = Blocked(duration)
        self._me = secrets.token_hex(8)

    async def add(self, device: Device) -> None:
        """Block the device."""
        self._blocked.add(device, datetime.now(UTC))
        try:
            await self._pool.execute(
                "SELECT pg_notify($1, $2)", CHANNEL, "/".join([self._me, *device])
            )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as failure:
            self._log.warning(
                "The other hosts do not know which device they should not let in",
                error_type=type(failure).__name__,
            )

    def hear(self, text: str) -> None:
        """Take what a host told."""
        parts = text.split("/")
        if len(parts) != _PARTS or parts[0] == self._me:
            return
        if is_tenant_id(parts[1]) and is_device_id(parts[2]):
            self._blocked.add((parts[1], parts[2]), datetime.now(UTC))

    def has(self, device: Device) -> bool:
        """Whether the device has to stay outside."""
        return self._blocked.has(device, datetime.now(UTC))


__all__ = ["CHANNEL", "Blocked", "ShutOut"]
