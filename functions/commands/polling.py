"""Endpoint by which the HTTP gateway asks for a device's open commands, and waits for one."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog

from functions.commands.store import QUERIES, content_of, mark_sent
from functions.domain.changes import EVERYTHING, ChangeListener
from functions.domain.command_polls import OpenCommands, PollCommands
from functions.domain.device_activity import Seen, note_seen
from functions.domain.downlinks import SentCommand
from runtime import Context, Event

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]

_CHANNEL = "device_commands"
_AT_ONCE = 20
_MOST_BYTES = 200_000
# While notifications do not arrive, for example behind a pooler, a poll looks this often.
_LOOK_EVERY_S = 1.0


class CommandNotices:
    """Wakes the polls of a device when a command for it is stored, on whichever host."""

    def __init__(self, pool: "Pool", log: structlog.stdlib.BoundLogger) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._changes = ChangeListener(pool, self._hear, log, channel=_CHANNEL)

    async def start(self) -> None:
        """Start to listen."""
        await self._changes.start()

    async def stop(self) -> None:
        """Return the connection to the pool, and end all waits."""
        await self._changes.stop()
        self._hear(EVERYTHING)

    @property
    def is_heard(self) -> bool:
        """Whether every notification arrives at present."""
        return self._changes.trusted

    @contextmanager
    def listening(self, tenant_id: str, device_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when a command for the device was stored since."""
        device = f"{tenant_id}/{device_id}"
        stored = asyncio.Event()
        self._waiting.setdefault(device, set()).add(stored)
        try:
            yield stored
        finally:
            waiting = self._waiting[device]
            waiting.discard(stored)
            if not waiting:
                del self._waiting[device]

    def _hear(self, device: str) -> None:
        if device == EVERYTHING:
            heard = [event for events in self._waiting.values() for event in events]
        else:
            heard = list(self._waiting.get(device, ()))
        for event in heard:
            event.set()


async def start(ctx: Context[CommandNotices]) -> CommandNotices:
    """Start to listen for new commands."""
    notices = CommandNotices(ctx.postgres, ctx.log)
    await notices.start()
    return notices


async def stop(ctx: Context[CommandNotices]) -> None:
    """Return the listener's connection to the pool."""
    await ctx.state.stop()


async def poll_commands(event: Event[PollCommands], ctx: Context[CommandNotices]) -> OpenCommands:
    """The device's commands that are not answered yet; waits for one when there is none.

    A command is shown until the device acknowledges it, however often it is asked for, so that an
    answer which the device did not get loses nothing.
    """
    query = event.data
    device = (query.tenant_id, query.device_id)
    # The gateway asks when the device has proved itself.
    await note_seen(ctx.postgres, {device: Seen(time.time_ns(), is_sessionless=True)})
    loop = asyncio.get_running_loop()
    end_s = loop.time() + query.wait_s
    with ctx.state.listening(query.tenant_id, query.device_id) as stored:
        while True:
            # Cleared before the look: what is stored after it sets the event again.
            stored.clear()
            commands = await _find_open(ctx, query)
            left_s = end_s - loop.time()
            if commands or left_s <= 0 or ctx.stopping.is_set():
                return OpenCommands(commands=commands)
            limit_s = left_s if ctx.state.is_heard else min(left_s, _LOOK_EVERY_S)
            try:
                async with asyncio.timeout(limit_s):
                    await stored.wait()
            except TimeoutError:
                continue


async def _find_open(ctx: Context[CommandNotices], query: PollCommands) -> list[dict[str, Any]]:
    device = (query.tenant_id, query.device_id)
    rows = await ctx.postgres.fetch(QUERIES["open"], *device, query.known, _AT_ONCE)
    commands: list[dict[str, Any]] = []
    queued: list[SentCommand] = []
    left_bytes = _MOST_BYTES
    for row in rows:
        left_bytes -= len(row["arguments"])
        if commands and left_bytes < 0:
            break
        commands.append(content_of(row))
        if row["status"] == "queued":
            named = dict(zip(("tenant_id", "device_id"), device, strict=True))
            queued.append(SentCommand(**named, command_id=row["command_id"]))
    await mark_sent(ctx.postgres, queued)
    return commands


__all__ = ["CommandNotices", "poll_commands", "start", "stop"]
