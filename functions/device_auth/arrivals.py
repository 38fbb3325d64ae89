"""Has the open commands of devices sent that have just connected."""

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import structlog

from functions.domain.background_task import BackgroundTask
from functions.domain.downlinks import send_open_commands

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

_SUBSCRIBES_WITHIN_S = 1.0
_MOST = 10_000
_OUTAGES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

Device = tuple[str, str]


class Arrivals(BackgroundTask):
    """Collects devices that connect, and once a second has the commands of all of them sent.

    A device subscribes after it is let in, so its commands follow after about that second. More
    than 10,000 devices in a second get theirs at the next send that is due, as do all when the
    database does not answer, and those that wait here when the function stops.
    """

    def __init__(self, pool: "Pool", log: structlog.stdlib.BoundLogger) -> None:
        super().__init__(log)
        self._pool = pool
        self._devices: set[Device] = set()
        self._arrived = asyncio.Event()

    def add(self, device: Device) -> None:
        """Note a device that was let in."""
        if len(self._devices) < _MOST:
            self._devices.add(device)
            self._arrived.set()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(_SUBSCRIBES_WITHIN_S)
            self._arrived.clear()
            devices, self._devices = self._devices, set()
            try:
                await send_open_commands(self._pool, devices)
            except _OUTAGES as failure:
                self._log.warning(
                    "Commands of devices that have connected are sent later",
                    devices=len(devices),
                    error_type=type(failure).__name__,
                )


__all__ = ["Arrivals"]
