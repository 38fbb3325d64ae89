"""Endpoint that tells doors without a database what has changed in the registry, as it happens."""

import asyncio
import secrets
from collections import deque
from typing import NamedTuple

from functions.domain.changes import EVERYTHING, ChangeListener
from functions.domain.registry_changes import RegistryChanges, WatchRegistry
from runtime import Context, Event

_MOST_KEPT = 10_000
# With the longest ids 200 bytes each.
_MOST_TOLD = 2_000
# Whoever asked another host before has missed what came since, which is less than this.
_AT_ANOTHER_HOST_S = 10.0


class _Change(NamedTuple):
    number: int
    heard_at_s: float
    text: str


class ChangeLog:
    """The newest changes, numbered. Every host hears each change, and numbers for itself."""

    def __init__(self) -> None:
        self._epoch = secrets.token_hex(8)
        self._number = 0
        self._kept: deque[_Change] = deque(maxlen=_MOST_KEPT)
        self._next = asyncio.Event()

    def hear(self, text: str) -> None:
        """Take a notification; other caches' are left out."""
        if text != EVERYTHING and text.partition("/")[0] not in {"device", "tenant"}:
            return
        self._number += 1
        now_s = asyncio.get_running_loop().time()
        self._kept.append(_Change(self._number, now_s, text))
        self._next.set()
        self._next = asyncio.Event()

    @property
    def next_change(self) -> asyncio.Event:
        """An event that the next change sets."""
        return self._next

    def since(self, position: str) -> RegistryChanges:
        """The changes after a position, or as many as one answer takes; maybe none."""
        epoch, _, number = position.partition("-")
        if epoch != self._epoch:
            begin_s = asyncio.get_running_loop().time() - _AT_ANOTHER_HOST_S
            missed = [change for change in self._kept if change.heard_at_s >= begin_s]
        elif self._kept and int(number) + 1 < self._kept[0].number:
            # More than are kept.
            return RegistryChanges(position=self._position(self._number), changes=[EVERYTHING])
        else:
            missed = self._after(int(number))
        told = missed[:_MOST_TOLD]
        last = told[-1].number if told else self._number
        return RegistryChanges(
            position=self._position(last), changes=[change.text for change in told]
        )

    def _after(self, number: int) -> list[_Change]:
        newer = self._number - number
        return list(self._kept)[-newer:] if newer > 0 else []

    def _position(self, number: int) -> str:
        return f"{self._epoch}-{number}"


class _State(NamedTuple):
    log: ChangeLog
    listener: ChangeListener


async def start(ctx: Context[_State]) -> _State:
    """Start to listen for changes of the registry."""
    log = ChangeLog()
    listener = ChangeListener(ctx.postgres, log.hear, ctx.log)
    await listener.start()
    return _State(log, listener)


async def stop(ctx: Context[_State]) -> None:
    """Return the listener's connection to the pool."""
    await ctx.state.listener.stop()


async def watch_registry(event: Event[WatchRegistry], ctx: Context[_State]) -> RegistryChanges:
    """What has changed since the last answer; waits for the next change when there is none."""
    query, log = event.data, ctx.state.log
    next_change = log.next_change
    answer = log.since(query.after)
    if answer.changes or not query.after:
        return answer
    try:
        async with asyncio.timeout(query.wait_s):
            await next_change.wait()
    except TimeoutError:
        return answer
    return log.since(answer.position)


__all__ = ["ChangeLog", "start", "stop", "watch_registry"]
