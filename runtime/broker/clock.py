"""The clock that schedules and parked messages go by: JetStream's, which all hosts share."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from runtime.broker.connection import Broker
from runtime.broker.stored import parse_time_ns
from runtime.broker.stream_configs import SCHEDULES

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_READ_AGAIN_S = 30.0


class Clock(Protocol):
    """Tells the time, and waits for it."""

    async def now(self) -> datetime:
        """The time, aware UTC; raises Unavailable while nobody can tell."""

    async def wait_until(self, moment: datetime) -> None:
        """Return at `moment`, or earlier: whoever waits looks at the clock again."""


class ServerClock:
    """JetStream's time, read every half a minute and counted on from there.

    A host's own clock has no part in it, whether it is wrong or is being set. What it tells is late
    by the way of an answer at most, and never early.

    Args:
        broker: whom to ask.
        stream: whose answers are looked at; one that exists.
    """

    def __init__(self, broker: Broker, stream: str = SCHEDULES) -> None:
        self._broker = broker
        self._stream = stream
        self._reading = asyncio.Lock()
        self._read_at_s = 0.0
        self._read: datetime | None = None
        self._time = time.monotonic

    async def now(self) -> datetime:
        """JetStream's time.

        Raises:
            ApiError: the stream is gone.
            Unavailable: JetStream does not answer.
        """
        async with self._reading:  # However many ask at once, one answer does for all.
            passed_s = self._time() - self._read_at_s
            if self._read is None or passed_s > _READ_AGAIN_S:
                answer = await self._broker.api(f"STREAM.INFO.{self._stream}")
                self._read = _EPOCH + timedelta(microseconds=parse_time_ns(answer["ts"]) // 1000)
                self._read_at_s, passed_s = self._time(), 0.0
            return self._read + timedelta(seconds=passed_s)

    async def wait_until(self, moment: datetime) -> None:
        """Sleep until then, at most until the clock is to be read again."""
        left_s = (moment - await self.now()).total_seconds()
        await asyncio.sleep(min(max(0.0, left_s), _READ_AGAIN_S))
