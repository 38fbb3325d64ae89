"""The two servers that a test can run on: in memory with a stopped clock, or a real nats-server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from runtime.broker.connection import ApiError, Broker
from runtime.testing.clock import FakeClock
from runtime.testing.errors import TestKitError
from runtime.testing.server.memory_server import MemoryServer

T = TypeVar("T")

MOST_REAL_S = 60.0
"""The most real seconds that `advance` waits on a real server."""
_LOOK_S = 0.02
_QUIET_LOOKS = 3


class Backend(Protocol):
    """A server, and how time passes on it.

    Attributes:
        url: the server's address.
        is_real: whether time cannot be moved.
    """

    url: str
    is_real: bool

    def now(self) -> datetime:
        """The server's time, aware UTC."""

    def time_s(self) -> float:
        """Seconds since the test began."""

    async def run(self, work: Awaitable[T], limit_s: float) -> T:
        """Await something that the host or the test does."""

    async def advance(self, seconds: float) -> None:
        """Let time pass."""

    async def until_idle(self, is_busy: Callable[[], Awaitable[bool]], limit_s: float) -> bool:
        """Let time pass while `is_busy`; False when it still is after `limit_s`."""

    async def unsettled(self, broker: Broker, stream: str, consumer: str, naked: int) -> int:
        """How many messages of a consumer are on their way to a host, or held by one.

        Args:
            broker: a connection to the server.
            stream: the stream.
            consumer: the consumer.
            naked: how many of its messages wait for another delivery.
        """

    def close(self) -> None:
        """End the server, if it is the test's own."""


class InMemory:
    """A server in memory; see `Backend`."""

    is_real = False

    def __init__(self, now: datetime) -> None:
        self._clock = FakeClock.acquire()
        self._began_s = self._clock.now_s()
        self._refused: set[str] = set()
        self.server = MemoryServer(now)
        self.url = self.server.url

    def now(self) -> datetime:
        """See `Backend.now`."""
        return self.server.clock.now()

    def time_s(self) -> float:
        """See `Backend.time_s`."""
        return self._clock.now_s() - self._began_s

    async def run(self, work: Awaitable[T], limit_s: float) -> T:
        """See `Backend.run`.

        Raises:
            TestKitError: the server in memory was asked for what it does not model.
        """
        result = await self._clock.run(work, limit_s)
        self._refuse()
        return result

    async def advance(self, seconds: float) -> None:
        """See `Backend.advance`."""
        await self._clock.advance(seconds)
        self._refuse()

    async def until_idle(self, is_busy: Callable[[], Awaitable[bool]], limit_s: float) -> bool:
        """See `Backend.until_idle`."""
        until_s = self._clock.now_s() + limit_s
        await self._clock.rest()
        while await is_busy():
            await self._clock.rest_outside_too(may_use_sockets=True)
            if not await is_busy():
                break
            if not self._clock.step(until_s):
                return False
            await self._clock.rest()
        self._refuse()
        return True

    async def unsettled(self, broker: Broker, stream: str, consumer: str, naked: int) -> int:
        """See `Backend.unsettled`."""
        return self.server.held(stream, consumer)

    def close(self) -> None:
        """See `Backend.close`."""
        self.server.close()
        self._clock.release()

    def _refuse(self) -> None:
        new = [each for each in self.server.not_modelled if each not in self._refused]
        if new:
            self._refused.update(new)
            raise TestKitError(new[0])


class RealServer:
    """A running nats-server; see `Backend`."""

    is_real = True

    def __init__(self, url: str) -> None:
        self.url = url
        self._began_s = time.monotonic()

    def now(self) -> datetime:
        """See `Backend.now`."""
        return datetime.now(UTC)

    def time_s(self) -> float:
        """See `Backend.time_s`."""
        return time.monotonic() - self._began_s

    async def run(self, work: Awaitable[T], limit_s: float) -> T:
        """See `Backend.run`."""
        async with asyncio.timeout(limit_s):
            return await work

    async def advance(self, seconds: float) -> None:
        """See `Backend.advance`.

        Raises:
            TestKitError: it would take too long.
        """
        if seconds > MOST_REAL_S:
            raise TestKitError(
                f"a real server's clock cannot be moved, and {seconds:g} s are more than the "
                f"{MOST_REAL_S:g} s that a test waits; use shorter times, or the server in memory"
            )
        await asyncio.sleep(seconds)

    async def until_idle(self, is_busy: Callable[[], Awaitable[bool]], limit_s: float) -> bool:
        """See `Backend.until_idle`. Idle for several looks: a message may be on its way."""
        until_s, quiet = time.monotonic() + limit_s, 0
        while quiet < _QUIET_LOOKS:
            quiet = 0 if await is_busy() else quiet + 1
            if time.monotonic() > until_s:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def unsettled(self, broker: Broker, stream: str, consumer: str, naked: int) -> int:
        """See `Backend.unsettled`."""
        try:
            found = await broker.api(f"CONSUMER.INFO.{stream}.{consumer}")
        except ApiError:
            return 0
        delivered: int = max(0, found["num_ack_pending"] - naked)
        return delivered + int(found["num_pending"])

    def close(self) -> None:
        """See `Backend.close`."""
