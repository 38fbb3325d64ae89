"""Finds devices that send far more than any device may, by what servers count. Does no I/O.

nats-server takes what a client sends as fast as it comes, and the streams delete their oldest
messages when they are full, read or not. The rates of ingest refuse messages only afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

Connection = tuple[str, int]
"""A server's id, and the connection's number there."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a connection has sent since it began."""

    started_at: datetime
    messages: int
    size_bytes: int


@dataclass(slots=True)
class FloodMeter:
    """Compares what connections have sent between two looks with what they may.

    Attributes:
        messages_per_s: the most that a connection may send on average.
        bytes_per_s: likewise.
        window: looks that follow each other faster than half of this are not judged, as a device
            may send at once what it has kept.
    """

    messages_per_s: float
    bytes_per_s: float
    window: timedelta
    _known: dict[Connection, Traffic] = field(default_factory=dict, init=False)
    _looked_at: datetime | None = field(default=None, init=False)

    def judge(self, traffic: Mapping[Connection, Traffic], now: datetime) -> list[Connection]:
        """The connections that have sent too much, in a look at all of them."""
        last = self._looked_at
        if last is not None and now - last < self.window / 2:
            return []
        found = [each for each in traffic if self._is_flood(each, traffic[each], now)]
        self._known, self._looked_at = dict(traffic), now
        return found

    def _is_flood(self, connection: Connection, traffic: Traffic, now: datetime) -> bool:
        before = self._known.get(connection)
        if before is None or self._looked_at is None:
            before, since = Traffic(now, 0, 0), traffic.started_at
        else:
            since = self._looked_at
        elapsed_s = max(now - since, self.window).total_seconds()
        return (
            traffic.messages - before.messages > self.messages_per_s * elapsed_s
            or traffic.size_bytes - before.size_bytes > self.bytes_per_s * elapsed_s
        )


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session may do, which nats-server does not limit.

    Attributes:
        max_subscriptions: as the server counts them.
        messages_per_s: what it may send on average.
        bytes_per_s: likewise.
    """

    max_subscriptions: int
    messages_per_s: float
    bytes_per_s: float


__all__ = ["Connection", "FloodMeter", "SessionLimits", "Traffic"]
