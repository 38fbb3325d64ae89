"""One session at the broker: takes its messages, stores them, and acknowledges what is stored."""

import asyncio
import random
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from paho.mqtt.client import MQTTMessage

from functions.domain.broker_messages import Publish
from functions.domain.topics import Topic, parse_topic
from functions.mqtt_bridge.connection import MqttConnection
from functions.mqtt_bridge.dialing import Disconnected
from functions.mqtt_bridge.packet_ids import Delivery, PacketIds
from functions.mqtt_bridge.settings import BridgeSettings
from functions.mqtt_bridge.storing import Store

MARK = ("sent-by", "runtime")
"""The user property of what the platform sends to devices, which comes back to the bridge."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
_BATCH = 500
_MOST_WAITING = 2000
"""Messages with QoS 0 need no acknowledgement, so the broker does not limit them."""
_STEADY_S = 60.0
_OUTAGE = timedelta(seconds=1)
"""When storing takes longer than this, messages wait at the broker."""
_LAST_BATCH_S = 5.0


class _Waiting(NamedTuple):
    """A message that is not stored yet.

    Attributes:
        packet_id: to acknowledge; 0 for QoS 0.
        publish: what is to be stored; None for a message of the platform itself.
        size_bytes: of the payload.
    """

    packet_id: int
    publish: Publish | None
    size_bytes: int


class Session:
    """Runs one session, from its first connection until it is stopped."""

    def __init__(self, settings: BridgeSettings, client_id: str, store: Store) -> None:
        self._settings = settings
        self._client_id = client_id
        self._store = store
        self._log = store.log.bind(session=client_id)
        self._ids = PacketIds(client_id)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._stored_some = asyncio.Event()
        self._connection: MqttConnection | None = None
        self._had_session = False
        # Subscription identifiers of messages that have not waited at the broker, and since when
        # the others have at the earliest: before this process, another one had the session.
        self._flowing: set[int] = set()
        self._kept_since = datetime.now(UTC) - timedelta(seconds=settings.place_life_s)

    async def run(self, stopping: asyncio.Event) -> None:
        """Bridge until `stopping` is set, and connect again whenever the connection ends."""
        loop = asyncio.get_running_loop()
        wait_s = FIRST_WAIT_S
        while not stopping.is_set():
            began_s = loop.time()
            try:
                await self._bridge(stopping)
            except Disconnected as ended:
                wait_s = FIRST_WAIT_S if loop.time() - began_s > _STEADY_S else wait_s
                self._tell(ended, wait_s)
                await _until(stopping, wait_s * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)

    async def _bridge(self, stopping: asyncio.Event) -> None:
        settings = self._settings
        self._waiting.clear()
        self._waiting_bytes = 0
        connection = self._connection = await MqttConnection.open(
            settings,
            client_id=self._client_id,
            session_expiry_s=settings.session_expiry_s,
            receive_maximum=settings.receive_maximum,
            receive=self._receive,
        )
        try:
            if not connection.resumed:
                self._ids.forget_session()
            await self._subscribe(connection)
            self._log.info("The MQTT bridge is connected.", resumed=connection.resumed)
            if self._had_session and not connection.resumed:
                self._log.warning("The MQTT broker has lost the session, with what it kept for it.")
            self._had_session = True
            stop = asyncio.ensure_future(stopping.wait())
            work = asyncio.ensure_future(self._work(connection))
            ends: set[asyncio.Future[Any]] = {stop, work, connection.ended}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if stop.done() and connection.is_open:
                    await self._finish(connection, work)
                    return
                if work.done():
                    work.result()
                raise connection.ended.result()
            finally:
                stop.cancel()
                work.cancel()
                await asyncio.gather(stop, work, return_exceptions=True)
        finally:
            self._keep_from(datetime.now(UTC))
            connection.close()
            self._connection = None

    async def _subscribe(self, connection: MqttConnection) -> None:
        group = self._settings.group
        identifier = self._ids.issue_identifier() if connection.marks_subscriptions else None
        if identifier is not None:
            self._flowing.add(identifier)
        await connection.subscribe(
            [f"$share/{group}/{topic}" for topic in self._settings.topics], identifier
        )

    async def _finish(self, connection: MqttConnection, work: "asyncio.Future[None]") -> None:
        """Store what is here; what does not find its way in time, the broker sends again."""
        connection.pause()
        idle = asyncio.ensure_future(self._until_idle())
        await asyncio.wait({idle, work}, timeout=_LAST_BATCH_S, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()

    async def _until_idle(self) -> None:
        while self._waiting:
            self._stored_some.clear()
            await self._stored_some.wait()

    def _receive(self, message: MQTTMessage) -> None:
        """Take a message from the connection; called for each, so it does nothing slow."""
        waiting = self._read(message)
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.size_bytes
        self._arrived.set()
        if self._is_full and self._connection is not None:
            self._connection.pause()

    @property
    def _is_full(self) -> bool:
        return (
            len(self._waiting) >= _MOST_WAITING
            or self._waiting_bytes >= self._settings.max_waiting_bytes
        )

    def _read(self, message: MQTTMessage) -> _Waiting:
        try:
            text = message.topic
        except UnicodeDecodeError:  # A broker that checks topics sends none.
            text = ""
        payload, packet_id = bytes(message.payload), message.mid if message.qos else 0
        properties = message.properties
        if _is_own(text, getattr(properties, "UserProperty", ())):
            return _Waiting(packet_id, None, len(payload))
        identifiers: list[int] = getattr(properties, "SubscriptionIdentifier", [])
        if packet_id:
            delivery = Delivery(packet_id, bool(message.dup), identifiers)
            message_id = self._ids.id_of(delivery, text, payload)
        else:
            message_id = self._ids.fresh_id()
        has_waited = identifiers and self._flowing.isdisjoint(identifiers)
        came_at = self._kept_since if has_waited else datetime.now(UTC)
        size_bytes, limit_bytes = len(payload), self._settings.max_publish_bytes
        cut_from_bytes = size_bytes if size_bytes > limit_bytes else 0
        kept = payload[:limit_bytes] if cut_from_bytes else payload
        publish = Publish(message_id, text, "", kept, came_at.isoformat(), cut_from_bytes)
        return _Waiting(packet_id, publish, len(kept))

    async def _work(self, connection: MqttConnection) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                # One batch after the other: the messages of a device stay in order.
                batch = [self._waiting[n] for n in range(min(_BATCH, len(self._waiting)))]
                began_at = datetime.now(UTC)
                await self._store.store([each.publish for each in batch if each.publish])
                for each in batch:
                    self._settle(connection, each)
                self._stored_some.set()
                if not self._is_full:
                    connection.resume()
                has_waited = datetime.now(UTC) - began_at > _OUTAGE
                if has_waited:
                    self._keep_from(began_at)
                if has_waited or self._ids.must_renew:
                    await self._subscribe(connection)

    def _keep_from(self, since: datetime) -> None:
        """What was published before the next subscription has waited at the broker.

        The envelope says so, and ingest takes it as late. The broker does not say how long.
        """
        self._kept_since = since
        self._flowing.clear()

    def _settle(self, connection: MqttConnection, done: _Waiting) -> None:
        self._waiting.popleft()
        self._waiting_bytes -= done.size_bytes
        if done.packet_id:
            self._ids.settle(done.packet_id)
            connection.acknowledge(done.packet_id)

    def _tell(self, ended: Disconnected, again_in_s: float) -> None:
        sentence = "The MQTT bridge is not connected."
        fields = {"reason": ended.reason, "again_in_s": round(again_in_s, 1)}
        if ended.taken_over:
            fields["hint"] = "another client has this client id: give each installation its own"
        if ended.needs_a_person or ended.taken_over:
            self._log.error(sentence, **fields)
        else:
            self._log.warning(sentence, **fields)


def _is_own(topic: str, properties: object) -> bool:
    """Whether the platform has sent the message to a device; the subscription covers that too."""
    if not isinstance(properties, list) or MARK not in properties:
        return False
    parsed = parse_topic(topic)
    return isinstance(parsed, Topic) and parsed.is_downlink


async def _until(event: asyncio.Event, wait_s: float) -> None:
    try:
        async with asyncio.timeout(wait_s):
            await event.wait()
    except TimeoutError:
        return


__all__ = ["MARK", "Session"]
