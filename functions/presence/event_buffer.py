"""Holds what servers tell of sessions until it is applied."""

import asyncio
from collections import Counter
from collections.abc import Iterable

from functions.presence.sessions import EndedSession, Session, read_event
from functions.presence.store import Changes

_GATHER_S = 0.25
_AT_A_TIME = 10_000
_MANY = 1000
_MAX_EVENTS = 200_000
_WAVES = 4


class EventBuffer:
    """Events of sessions in the order in which they came; bounded.

    Args:
        account: the account of the devices.

    Attributes:
        is_incomplete: events were dropped for lack of room, so sessions have to be compared.
    """

    def __init__(self, account: str) -> None:
        self._account = account
        self._events: list[Session | EndedSession] = []
        self._arrived = asyncio.Event()
        self.is_incomplete = False

    def take(self, _subject: str, data: bytes) -> None:
        """Add an event of a server, if it is about a device's session."""
        event = read_event(data, self._account)
        if event is None:
            return
        if len(self._events) >= _MAX_EVENTS:
            self.is_incomplete = True
            return
        self._events.append(event)
        self._arrived.set()

    async def wait(self) -> int:
        """Wait for an event, and a moment for others; how many are to be applied together."""
        await self._arrived.wait()
        if len(self._events) < _MANY:
            await asyncio.sleep(_GATHER_S)
        return min(len(self._events), _AT_A_TIME)

    def first(self, count: int) -> list[Changes]:
        """The oldest events, to be applied in this order; they stay until `drop`."""
        return in_waves(self._events[:count])

    def drop(self, count: int) -> None:
        """Drop the oldest events."""
        del self._events[:count]
        if not self._events:
            self._arrived.clear()


def in_waves(events: Iterable[Session | EndedSession]) -> list[Changes]:
    """The events as changes of which each has one event of a device, so that none is passed over.

    The last one has all that is left: a device that connects all the time is not followed through
    every connection, and costs what four events cost.
    """
    waves = [Changes() for _ in range(_WAVES)]
    counts: Counter[tuple[str, str]] = Counter()
    for event in events:
        session = event.session if isinstance(event, EndedSession) else event
        device = (session.tenant_id, session.device_id)
        wave = waves[min(counts[device], _WAVES - 1)]
        counts[device] += 1
        if isinstance(event, EndedSession):
            wave.ended.append(event)
        else:
            wave.opened.append(event)
    return [wave for wave in waves if wave.opened or wave.ended]


__all__ = ["EventBuffer", "in_waves"]
