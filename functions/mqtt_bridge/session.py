"""One session at the broker: takes its messages, stores them, and acknowledges what is stored."""

import asyncio
import random
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

from functions.domain.downlink_marks import OwnMessages
from functions.mqtt_bridge.connection import MqttConnection
from functions.mqtt_bridge.intake import Intake
from functions.mqtt_bridge.outcomes import Disconnected
from functions.mqtt_bridge.settings import BridgeSettings
from functions.mqtt_bridge.storing import Store

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
_STEADY_S = 60.0
_OUTAGE = timedelta(seconds=1)
"""When storing takes longer than this, messages wait at the broker."""
_LAST_BATCH_S = 5.0
_FLUSH_S = 2.0


class Session:
    """Runs one session, from its first connection until it is stopped.

    Storing goes on while connections come and go, and waits for nothing that the broker says: the
    answer to a subscription may stand behind more messages than the session holds.
    """

    def __init__(
        self, settings: BridgeSettings, client_id: str, store: Store, own: OwnMessages
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._store = store
        self._log = store.log.bind(session=client_id)
        self._intake = Intake(settings, client_id, own)
        self._connection: MqttConnection | None = None
        self._renewal = asyncio.Event()
        self._had_session = False
        self._has_told_qos = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Bridge until `stopping` is set, and connect again whenever the connection ends."""
        loop = asyncio.get_running_loop()
        wait_s = FIRST_WAIT_S
        async with _Tasks() as tasks:
            stop, work = tasks.start(stopping.wait()), tasks.start(self._work())
            while not stop.done():
                began_s = loop.time()
                try:
                    await self._bridge(stop, work)
                except Disconnected as ended:
                    if stopping.is_set():
                        return
                    wait_s = FIRST_WAIT_S if loop.time() - began_s > _STEADY_S else wait_s
                    self._tell(ended, wait_s)
                    pause_s = wait_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter
                    await _first_of(stop, work, timeout_s=pause_s)
                    wait_s = min(LONGEST_WAIT_S, wait_s * 2)
                if work.done():
                    work.result()

    async def _bridge(self, stop: "asyncio.Task[Any]", work: "asyncio.Task[Any]") -> None:
        """One connection, until it ends or the session is stopped."""
        connection = await self._open(stop)
        if connection is None:
            return
        self._connection = connection
        if self._intake.has_room:
            connection.resume()  # It may have begun to receive before it was known here.
        try:
            if not connection.resumed:
                self._intake.ids.forget_session()
            async with _Tasks() as tasks:
                subscribing = tasks.start(self._keep_subscribed(connection))
                await _first_of(stop, work, subscribing, connection.ended)
                if stop.done() and connection.is_open:
                    await self._finish(connection, work)
                elif subscribing.done():
                    subscribing.result()
                elif connection.ended.done():
                    raise connection.ended.result()
        finally:
            connection.close()
            self._connection = None
            self._intake.forget_unacknowledged()
            self._intake.keep_from(datetime.now(UTC))

    async def _open(self, stop: "asyncio.Task[Any]") -> MqttConnection | None:
        """Connect; None when the session is stopped meanwhile."""
        async with _Tasks() as tasks:
            opening = tasks.start(
                MqttConnection.open(
                    self._settings,
                    client_id=self._client_id,
                    session_expiry_s=self._settings.session_expiry_s,
                    receive_maximum=self._settings.receive_maximum,
                    receive=self._intake.take,
                )
            )
            try:
                await _first_of(stop, opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close)
                raise
            return opening.result() if opening.done() else None

    async def _keep_subscribed(self, connection: MqttConnection) -> None:
        """Subscribe, and again with a new identifier whenever one is wanted."""
        await self._subscribe(connection)
        if connection.resumed:
            # Of another number of sessions. Not before, as the broker may refuse the new ones.
            connection.unsubscribe(self._filters(not self._is_shared))
        self._log.info("The MQTT bridge is connected.", resumed=connection.resumed)
        if self._had_session and not connection.resumed:
            self._log.warning("The MQTT broker has lost the session, with what it kept for it.")
        self._had_session = True
        while True:
            await self._renewal.wait()
            await self._subscribe(connection)

    async def _subscribe(self, connection: MqttConnection) -> None:
        self._renewal.clear()
        granted_qos = await connection.subscribe(
            self._filters(self._is_shared),
            self._intake.issue_identifier() if connection.marks_subscriptions else None,
        )
        if not granted_qos and not self._has_told_qos:
            self._has_told_qos = True
            self._log.error(
                "The MQTT broker delivers with QoS 0: what is not stored at once is lost.",
                hint="let the bridge subscribe with QoS 1",
            )

    @property
    def _is_shared(self) -> bool:
        """Whether several sessions share the messages.

        One alone does not: Mosquitto 2.0.11 forgets shared subscriptions when it is restarted, and
        loses what comes until the bridge is back.
        """
        return self._settings.sessions > 1

    def _filters(self, is_shared: bool) -> list[str]:
        before = f"$share/{self._settings.group}/" if is_shared else ""
        return [f"{before}{topic}" for topic in self._settings.topics]

    async def _finish(self, connection: MqttConnection, work: "asyncio.Task[Any]") -> None:
        """Store what is here; what does not find its way in time, the broker sends again."""
        self._intake.is_closing = True
        connection.pause()
        async with _Tasks() as tasks:
            emptied = tasks.start(self._intake.wait_until_empty())
            await _first_of(emptied, work, timeout_s=_LAST_BATCH_S)
            if emptied.done():
                await _first_of(tasks.start(connection.flush()), timeout_s=_FLUSH_S)

    async def _work(self) -> None:
        """Store one batch after the other, so that the messages of a device stay in order."""
        intake = self._intake
        while True:
            batch = await intake.next_batch()
            began_at = datetime.now(UTC)
            await self._store.store([each.publish for each in batch if each.publish])
            for each in batch:
                intake.settle(each)
            if self._connection is not None and intake.has_room:
                self._connection.resume()
            has_waited = datetime.now(UTC) - began_at > _OUTAGE
            if has_waited:
                intake.keep_from(began_at)
            if has_waited or intake.ids.must_renew:
                self._renewal.set()

    def _tell(self, ended: Disconnected, again_in_s: float) -> None:
        sentence = "The MQTT bridge is not connected."
        fields = {"reason": ended.reason, "again_in_s": round(again_in_s, 1)}
        if ended.taken_over:
            fields["hint"] = "another client has this client id: give each installation its own"
        if ended.needs_a_person or ended.taken_over:
            self._log.error(sentence, **fields)
        else:
            self._log.warning(sentence, **fields)


class _Tasks:
    """Tasks that end with a block: whatever ends it, those that still run are cancelled."""

    def __init__(self) -> None:
        self._started: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> "_Tasks":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._started:
            task.cancel()
        await asyncio.gather(*self._started, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._started.append(task)
        return task


def _close(opening: "asyncio.Future[MqttConnection]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


async def _first_of(*awaited: "asyncio.Future[Any]", timeout_s: float | None = None) -> None:
    """Return when one of them is done, or after the time."""
    await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


__all__ = ["Session"]
