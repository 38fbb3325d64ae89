"""Bridge to an MQTT 5 broker: what devices publish there is stored here, and then acknowledged.

The broker's PUBACK to a device says that the broker has the message; this function's PUBACK to the
broker says that JetStream has it. So between the broker and the row nothing is lost, however often
hosts are killed.
"""

import asyncio

from functions.mqtt_bridge.places import Places, plan
from functions.mqtt_bridge.session import Session
from functions.mqtt_bridge.settings import BridgeSettings
from functions.mqtt_bridge.storing import Store
from runtime import Context, Unavailable

# The name under which the host looks for a function's settings.
Settings = BridgeSettings

_LOOK_S = 2.0


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
    running = _Running(settings, Store(ctx, settings.max_publish_bytes))
    try:
        while not ctx.stopping.is_set():
            await _share(ctx, settings.sessions, places, running)
            running.check()
            await _pause(ctx.stopping)
        await running.stop(*running.places)
        for place in places.held:
            await places.release(place)
    finally:
        await running.cancel()


async def _share(ctx: Context, sessions: int, places: Places, running: _Running) -> None:
    """One round: keep what is held, and claim or give up one place."""
    try:
        await places.renew()
        next_step = plan(sessions, places.held, await places.look())
        if next_step.release is not None:
            await running.stop(next_step.release)
            await places.release(next_step.release)
        if next_step.claim is not None:
            await places.claim(next_step.claim)
    except Unavailable as away:
        ctx.log.debug("The places of the MQTT bridge are not renewed.", reason=away.reason)
    held = places.held
    await running.stop(*(running.places - held))
    for place in held - running.places:
        running.start(place)


async def _pause(stopping: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK_S):
            await stopping.wait()
    except TimeoutError:
        return


__all__ = ["BridgeSettings", "Settings", "serve"]
