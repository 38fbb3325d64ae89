"""JetStream's clock, which all hosts share; schedules and parked messages use it."""

import asyncio
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
        """The time, aware UTC; raises Unavailable while the time is not known."""

    async def wait_until(self, moment: datetime) -> None:
        """Return at `moment`, or earlier: the caller reads the clock again."""


class ServerClock:
    """JetStream's time, read every 30 s and advanced in between by the loop's clock.

    The host's own wall clock is not used, so it may be wrong or be set. The time returned is late
    by at most the round trip of the answer, and never early.

    Args:
        broker: the connection.
        stream: an existing stream, whose information carries the time.
    """

    def __init__(self, broker: Broker, stream: str = SCHEDULES) -> None:
        self._broker = broker
        self._stream = stream
        self._reading = asyncio.Lock()
        self._read_at_s = 0.0
        self._read: datetime | None = None

    async def now(self) -> datetime:
        """JetStream's time.

        Raises:
            ApiError: the stream is gone.
            Unavailable: JetStream does not answer.
        """
        time_s = asyncio.get_running_loop().time
        async with self._reading:  # One answer serves all concurrent callers.
            passed_s = time_s() - self._read_at_s
            if self._read is None or passed_s > _READ_AGAIN_S:
                answer = await self._broker.api(f"STREAM.INFO.{self._stream}")
                self._read = _EPOCH + timedelta(microseconds=parse_time_ns(answer["ts"]) // 1000)
                self._read_at_s, passed_s = time_s(), 0.0
            return self._read + timedelta(seconds=passed_s)

    async def wait_until(self, moment: datetime) -> None:
        """Sleep until `moment`, at most until the clock must be read again."""
        left_s = (moment - await self.now()).total_seconds()
        await asyncio.sleep(min(max(0.0, left_s), _READ_AGAIN_S))
