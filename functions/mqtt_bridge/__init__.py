"""Bridge to an MQTT 5 broker: what devices publish there is stored here, and then acknowledged.

The broker's PUBACK to a device says that the broker has the message; this function's PUBACK to the
broker says that JetStream has it. So between the broker and the row nothing is lost, however often
hosts are killed.
"""

import asyncio

from functions.mqtt_bridge.places import STREAM, Places, plan
from functions.mqtt_bridge.session import Session
from functions.mqtt_bridge.settings import BridgeSettings
from functions.mqtt_bridge.storing import Store
from runtime import Context, Unavailable

# The name under which the host looks for a function's settings.
Settings = BridgeSettings

_LOOK_S = 2.0
_TELL_EVERY_S = 60.0
_NOT_SHARED = (
    "Hosts cannot share the sessions of the MQTT bridge: without its stream a host has none."
)


class _Running:
    """The sessions that run in this process, by place."""

    def __init__(self, settings: BridgeSettings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._tasks: dict[int, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    def start(self, place: int) -> None:
        """Begin the session of a place."""
        stopping = asyncio.Event()
        session = Session(self._settings, f"{self._settings.client_id}-{place}", self._store)
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
    told_at_s = float("-inf")
    running = _Running(settings, Store(ctx, settings.max_publish_bytes))
    try:
        while not ctx.stopping.is_set():
            failure = await _share(settings.sessions, places, running)
            now_s = asyncio.get_running_loop().time()
            if failure and not running.places and now_s - told_at_s > _TELL_EVERY_S:
                told_at_s = now_s
                ctx.log.warning(_NOT_SHARED, stream=STREAM, reason=failure.reason)
            running.check()
            await _pause(ctx.stopping)
        await running.stop(*running.places)
        for place in places.held:
            await places.release(place)
    finally:
        await running.cancel()


async def _share(sessions: int, places: Places, running: _Running) -> Unavailable | None:
    """One round: keep what is held, and claim or give up one place; returns what failed."""
    failure: Unavailable | None = None
    try:
        await places.renew()
        next_step = plan(sessions, places.held, await places.look())
        if next_step.release is not None:
            await running.stop(next_step.release)
            await places.release(next_step.release)
        if next_step.claim is not None:
            await places.claim(next_step.claim)
    except Unavailable as away:
        failure = away
    held = places.held
    await running.stop(*(running.places - held))
    for place in held - running.places:
        running.start(place)
    return failure


async def _pause(stopping: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_S):
            await stopping.wait()
    except TimeoutError:
        return


__all__ = ["BridgeSettings", "Settings", "serve"]
