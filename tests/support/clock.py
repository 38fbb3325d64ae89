"""A clock that only the test advances."""

import asyncio
from datetime import datetime


class ManualClock:
    """A clock that the test sets; several hosts may share it."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment
        self._waiting: list[tuple[datetime, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    async def now(self) -> datetime:
        return self.moment

    async def wait_until(self, moment: datetime) -> None:
        if moment <= self.moment:
            return
        entry = (moment, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._changed.set()
        try:
            await entry[1]
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def set(self, moment: datetime) -> None:
        self.moment = moment
        due = [entry for entry in self._waiting if entry[0] <= moment]
        self._waiting = [entry for entry in self._waiting if entry[0] > moment]
        for _, future in due:
            if not future.done():
                future.set_result(None)

    async def idle(self, count: int = 1) -> None:
        """Return when that many tasks wait for a later time, so that none has work due."""
        async with asyncio.timeout(20):
            while len(self._waiting) < count:
                self._changed.clear()
                await self._changed.wait()
