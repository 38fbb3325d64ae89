"""Watches which devices are online: by the events of nats-servers, and by silence.

Every host hears every event and applies it; the same event once more changes nothing, so that a
host which is killed leaves nothing undone. A change of status is an event of the device, in the
transaction of the change.
"""

import asyncio
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from functions.domain.device_activity import DEFAULT_TIMEOUT_S
from functions.presence.comparison import Comparison
from functions.presence.event_buffer import EventBuffer
from functions.presence.server_watch import ServerWatch
from functions.presence.sessions import GLOBAL_ACCOUNT
from functions.presence.store import QUERIES
from functions.presence.watching import PresenceWatch, repeat
from runtime import ConfigError, Context, SystemPort

_EVENTS = ("$SYS.ACCOUNT.*.CONNECT", "$SYS.ACCOUNT.*.DISCONNECT")
_LOOK_EVERY_S = 1.0
_SERVERS_EVERY_S = 2.0
_COMPARE_EVERY_S = 0.5


class PresenceSettings(BaseModel):
    """When devices are offline, and where their sessions are.

    Attributes:
        timeout_s: after so many seconds without a message a device without a session is offline;
            a device may have a timeout of its own.
        account: the NATS account of the devices; `$G` where the configuration names none.
        compare_s: seconds between two comparisons of the sessions with those of the servers, in
            case that an event was not heard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: Annotated[int, Field(ge=15, le=31_536_000)] = DEFAULT_TIMEOUT_S
    account: Annotated[str, Field(min_length=1, max_length=64)] = GLOBAL_ACCOUNT
    compare_s: Annotated[float, Field(ge=1, le=3600)] = 60.0


# The name under which the host looks for a function's settings.
Settings = PresenceSettings


async def watch(ctx: Context[None]) -> None:
    """Watch until the host stops."""
    settings: PresenceSettings = ctx.settings
    watching = PresenceWatch(ctx, settings.timeout_s)
    async with asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(repeat(ctx, "silence", _LOOK_EVERY_S, watching.look))]
        system = _system(ctx)
        if system is not None:
            background.append(tasks.create_task(_watch_sessions(ctx, system, watching)))
        await ctx.stopping.wait()
        for task in background:
            task.cancel()


def _system(ctx: Context[None]) -> SystemPort | None:
    try:
        return ctx.nats_system
    except ConfigError:
        ctx.log.info("Presence goes by messages alone: NATS_SYSTEM_URL is not set")
        return None


async def _watch_sessions(ctx: Context[None], system: SystemPort, watching: PresenceWatch) -> None:
    settings: PresenceSettings = ctx.settings
    events = EventBuffer(settings.account)
    servers = ServerWatch(
        *(ctx.postgres, ctx.log, system), account=settings.account, apply=watching.apply
    )
    comparison = Comparison(
        *(ctx, system, servers),
        account=settings.account,
        every_s=settings.compare_s,
        apply=watching.apply,
    )
    reconnects = -1

    async def compare() -> None:
        nonlocal reconnects
        if system.reconnects != reconnects or events.is_incomplete:
            # First what may fail: a comparison that is not asked for now would never be made.
            since = await ctx.postgres.fetchval(QUERIES["clock"])
            reconnects, events.is_incomplete = system.reconnects, False
            comparison.want(since)
        await comparison.run_once()

    async def ask() -> None:
        if (since := await servers.run_once()) is not None:
            comparison.want(since)

    listening = [await system.subscribe(subject, events.take) for subject in _EVENTS]
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(repeat(ctx, "events", 0, lambda: watching.apply_events(events)))
            tasks.create_task(repeat(ctx, "comparison", _COMPARE_EVERY_S, compare))
            tasks.create_task(repeat(ctx, "servers", _SERVERS_EVERY_S, ask))
    finally:
        for each in listening:
            await each.unsubscribe()


__all__ = ["PresenceSettings", "Settings", "watch"]
