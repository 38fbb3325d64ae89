"""Devices that have changed from MQTT to another door, which are noted as seen at once.

A device is noted once a minute. When its session ends, its last message may have come by another
door already, and would not be noted: the device would seem to be gone until the next one.
"""

import asyncio

import asyncpg
import structlog

from functions.domain.device_activity import Seen, note_seen
from functions.domain.registry import DeviceKey

# Of the devices that a process knows, as many as its registry keeps.
_MOST = 100_000


class MovedDevices:
    """Notes such devices in the background, together.

    Args:
        pool: to PostgreSQL.
        log: tells of an outage.
    """

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", log: structlog.stdlib.BoundLogger
    ) -> None:
        self._pool = pool
        self._log = log
        self._waiting: dict[DeviceKey, Seen] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, moved: dict[DeviceKey, Seen]) -> None:
        """Note these devices soon."""
        if len(self._waiting) + len(moved) <= _MOST:
            self._waiting |= moved
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._note())

    async def stop(self) -> None:
        """Note no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _note(self) -> None:
        while self._waiting:
            seen, self._waiting = self._waiting, {}
            try:
                await note_seen(self._pool, seen)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as failure:
                # The next message of each is noted in any case.
                self._log.warning(
                    "Devices that have changed their door were not noted as seen",
                    devices=len(seen),
                    error_type=type(failure).__name__,
                )


__all__ = ["MovedDevices"]
