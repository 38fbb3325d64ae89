"""Bridge to an MQTT 5 broker: what devices publish there is stored here, and then acknowledged.

The broker's PUBACK to a device says that the broker has the message; this function's PUBACK to the
broker says that JetStream has it. So between the broker and the row nothing is lost, however often
hosts are killed.
"""

import asyncio
from collections.abc import Sequence

from functions.domain.downlink_marks import DownlinkMarks, OwnMessages
from functions.mqtt_bridge.places import STREAM, Places, plan
from functions.mqtt_bridge.session import Session
from functions.mqtt_bridge.settings import BridgeSettings
from functions.mqtt_bridge.storing import Store
from runtime import Context, Unavailable

# The name under which the host looks for a function's settings.
Settings = BridgeSettings

_LOOK_S = 2.0
_CHECK_S = 0.5
_TELL_EVERY_S = 60.0
_NOT_SHARED = (
    "Hosts cannot share the sessions of the MQTT bridge: without its stream a host has none."
)
_OTHER_LIFE = (
    "The stream of the MQTT bridge keeps the record of a host for another time than the setting"
    " place_life_s says."
)


class _Running:
    """The sessions that run in this process, by place."""

    def __init__(self, settings: BridgeSettings, store: Store, own: OwnMessages) -> None:
        self._settings = settings
        self._store = store
        self._own = own
        self._tasks: dict[int, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    def start(self, place: int) -> None:
        """Begin the session of a place."""
        stopping = asyncio.Event()
        client_id = f"{self._settings.client_id}-{place}"
        session = Session(self._settings, client_id, self._store, self._own)
        self._tasks[place] = stopping, asyncio.create_task(session.run(stopping))

    async def stop(self, *places: int) -> None:
        """End the sessions of places; the broker keeps them for whoever comes next."""
        ended = [self._tasks.pop(place) for place in places if place in self._tasks]
        for stopping, _ in ended:
            stopping.set()
        await asyncio.gather(*(task for _, task in ended))

    @property
    def places(self) -> frozenset[int]:
        """The places whose sessions run."""
        return frozenset(self._tasks)

    def check(self) -> None:
        """Raise what has ended a session that nobody has stopped."""
        for _, task in self._tasks.values():
            if task.done():
                task.result()

    async def cancel(self) -> None:
        """End all at once."""
        for _, task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._tasks.values()), return_exceptions=True)


async def serve(ctx: Context) -> None:
    """Bridge until the host stops.

    The host keeps its share of the sessions, and takes over those of hosts that have died.
    """
    settings: BridgeSettings = ctx.settings
    places = Places(ctx, settings.place_life_s)
    own = OwnMessages(DownlinkMarks(settings.mark_key), ctx.log)
    running = _Running(settings, Store(ctx, settings.max_publish_bytes), own)
    # Ending a session and asking JetStream take their time, and places are kept or left meanwhile.
    keeping = [asyncio.create_task(_keep(places)), asyncio.create_task(_leave(places, running))]
    try:
        await _share_until(ctx, keeping, places, running)
        await running.stop(*running.places)
    finally:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, running.cancel(), return_exceptions=True)
        own.tell()
    await places.leave()


async def _keep(places: Places) -> None:
    """Renew what this host holds. While JetStream is away it ends by itself."""
    while True:
        await asyncio.sleep(min(_LOOK_S, places.renew_every_s))
        try:
            await places.renew()
        except Unavailable:
            continue


async def _leave(places: Places, running: _Running) -> None:
    """End the sessions whose places this host has lost."""
    while True:
        await asyncio.sleep(_CHECK_S)
        await running.stop(*(running.places - places.held))


async def _share_until(
    ctx: Context, keeping: "Sequence[asyncio.Task[None]]", places: Places, running: _Running
) -> None:
    """Share the sessions with the other hosts until the host stops."""
    settings: BridgeSettings = ctx.settings
    told_at_s = float("-inf")
    has_checked = False
    while not ctx.stopping.is_set():
        failure = await _share(settings.sessions, places, running)
        now_s = asyncio.get_running_loop().time()
        if failure and not running.places and now_s - told_at_s > _TELL_EVERY_S:
            told_at_s = now_s
            ctx.log.warning(_NOT_SHARED, stream=STREAM, reason=failure.reason)
        if not has_checked and places.stream_life_s is not None:
            has_checked = True
            _check_life(ctx, settings.place_life_s, places.stream_life_s)
        running.check()
        for task in keeping:
            if task.done():
                task.result()
        await _pause(ctx.stopping)


def _check_life(ctx: Context, place_life_s: float, stream_life_s: float) -> None:
    if stream_life_s == place_life_s:
        return
    ctx.log.error(
        _OTHER_LIFE,
        stream=STREAM,
        max_age_s=stream_life_s,
        place_life_s=place_life_s,
        hint="a dead host's sessions wait for `max_age`, with 0 for ever: set both alike",
    )


async def _share(sessions: int, places: Places, running: _Running) -> Unavailable | None:
    """One round: claim this host's share, or give up one place; returns what failed."""
    failure: Unavailable | None = None
    try:
        seen = await places.look()
        next_step = plan(sessions, places.held, seen)
        if next_step.release is not None:
            await running.stop(next_step.release)
            await places.release(next_step.release)
        while next_step.claim is not None:
            await places.claim(next_step.claim)
            seen = seen._replace(taken=seen.taken | {next_step.claim})
            next_step = plan(sessions, places.held, seen)
    except Unavailable as away:
        failure = away
    for place in places.held - running.places:
        running.start(place)
    return failure


async def _pause(stopping: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_S):
            await stopping.wait()
    except TimeoutError:
        return


__all__ = ["BridgeSettings", "Settings", "serve"]
