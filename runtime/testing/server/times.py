"""The wall clock of the server in memory, which follows the event loop's clock."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

NS = 1_000_000_000


class WallClock:
    """Nanoseconds since 1970, and timers on the loop's clock.

    Args:
        now: the time when the clock starts, aware UTC.
    """

    def __init__(self, now: datetime) -> None:
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._began_ns = int(now.timestamp() * 1_000_000) * 1000

    def now_ns(self) -> int:
        """The time."""
        return self._began_ns + round((self._loop.time() - self._began_s) * NS)

    def now(self) -> datetime:
        """The time, to the microsecond, aware UTC."""
        return datetime.fromtimestamp(self.now_ns() // 1000 / 1e6, tz=UTC)

    def text(self, ns: int | None = None) -> str:
        """A time as JetStream writes it; the time now unless given."""
        moment = self.now_ns() if ns is None else ns
        whole = datetime.fromtimestamp(moment // NS, tz=UTC)
        return f"{whole:%Y-%m-%dT%H:%M:%S}.{moment % NS:09d}Z"

    def at_ns(self, moment_ns: int, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call at a time."""
        # A few nanoseconds late, as a float of the loop's clock has fewer digits than the time.
        return self._loop.call_at(self._began_s + (moment_ns - self._began_ns) / NS + 1e-6, call)
