"""What a session has received and not stored yet, in its order."""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from functions.domain.broker_messages import Publish
from functions.domain.downlink_marks import OwnMessages
from functions.mqtt_bridge.connection import MqttConnection
from functions.mqtt_bridge.packet_ids import Delivery, PacketIds
from functions.mqtt_bridge.received import Received
from functions.mqtt_bridge.settings import BridgeSettings

_BATCH = 500
_MOST_WAITING = 2000
"""Messages with QoS 0 need no acknowledgement, so the broker does not limit them."""
_LARGEST_OWN_BYTES = 1_000_000
"""More than a message of stream `DOWNLINKS` may have."""


class Waiting(NamedTuple):
    """A message that is not stored yet.

    Attributes:
        connection: from which it came, and to which its acknowledgement goes.
        packet_id: to acknowledge; 0 for QoS 0.
        publish: what is to be stored; None for a message of the platform itself.
        size_bytes: of what is held of it.
    """

    connection: MqttConnection
    packet_id: int
    qos: int
    publish: Publish | None
    size_bytes: int


class Intake:
    """The messages of one session, over all its connections.

    Args:
        settings: of the bridge.
        client_id: the session's.
        own: recognises messages of the platform itself.

    Attributes:
        ids: the session's message ids.
        is_closing: whether no more messages are wanted.
    """

    def __init__(self, settings: BridgeSettings, client_id: str, own: OwnMessages) -> None:
        self.ids = PacketIds(client_id)
        self.is_closing = False
        self._limit_bytes = settings.max_publish_bytes
        self._most_bytes = settings.max_waiting_bytes
        self._own = own
        self._waiting: deque[Waiting] = deque()
        self._held, self._held_bytes = 0, 0
        self._arrived = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        # Subscription identifiers of messages that have not waited at the broker, and since when
        # the others have at the earliest: before this process, another one had the session.
        self._flowing: set[int] = set()
        self._kept_since = datetime.now(UTC) - timedelta(seconds=settings.place_life_s)

    @property
    def has_room(self) -> bool:
        """Whether the session may read further."""
        return (
            not self.is_closing
            and self._held < _MOST_WAITING
            and self._held_bytes < self._most_bytes
        )

    def take(self, connection: MqttConnection, message: Received) -> bool:
        """Take a message; called for each, so it does nothing slow. Returns `has_room`."""
        waiting = self._read(connection, message)
        self._waiting.append(waiting)
        self._held += 1
        self._held_bytes += waiting.size_bytes
        self._emptied.clear()
        self._arrived.set()
        return self.has_room

    async def next_batch(self) -> Sequence[Waiting]:
        """The next messages to store, at least one; each is to be settled."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]

    def settle(self, stored: Waiting) -> None:
        """A message is stored: acknowledge it."""
        if stored.packet_id and stored.connection.is_open:
            self.ids.settle(stored.packet_id)
            stored.connection.acknowledge(stored.packet_id, stored.qos)
        self._drop(stored)

    def forget_unacknowledged(self) -> None:
        """The connection has ended: what waits for its acknowledgement the broker sends again."""
        kept = [each for each in self._waiting if not each.packet_id]
        for each in self._waiting:
            if each.packet_id:
                self._drop(each)
        self._waiting = deque(kept)

    async def wait_until_empty(self) -> None:
        """Return when everything is stored."""
        await self._emptied.wait()

    def issue_identifier(self) -> int:
        """A new subscription identifier; what comes with it has not waited at the broker."""
        identifier = self.ids.issue_identifier()
        self._flowing.add(identifier)
        return identifier

    def keep_from(self, since: datetime) -> None:
        """What was published before the next subscription has waited at the broker.

        The envelope says so, and ingest takes it as late. The broker does not say how long.
        """
        self._kept_since = since
        self._flowing.clear()

    def _drop(self, waiting: Waiting) -> None:
        self._held -= 1
        self._held_bytes -= waiting.size_bytes
        if not self._held:
            self._emptied.set()

    def _read(self, connection: MqttConnection, message: Received) -> Waiting:
        topic, packet_id = message.topic, message.packet_id
        size_bytes = len(message.payload)
        if self._is_own(message):
            return Waiting(connection, packet_id, message.qos, None, 0)
        # A message may have 256 MB, and no more of it is looked at than is kept.
        payload = bytes(message.payload[: self._limit_bytes])
        if packet_id:
            delivery = Delivery(packet_id, message.is_repeated, message.identifiers)
            message_id = self.ids.id_of(delivery, topic, payload)
        else:
            message_id = self.ids.fresh_id()
        has_waited = message.identifiers and self._flowing.isdisjoint(message.identifiers)
        came_at = self._kept_since if has_waited else datetime.now(UTC)
        publish = Publish(
            message_id,
            topic,
            "",
            payload,
            came_at.isoformat(),
            size_bytes if size_bytes > self._limit_bytes else 0,
        )
        return Waiting(connection, packet_id, message.qos, publish, len(topic) + len(payload))

    def _is_own(self, message: Received) -> bool:
        if not message.mark or len(message.payload) > _LARGEST_OWN_BYTES:
            return False
        return self._own.recognise(message.topic, bytes(message.payload), message.mark)


__all__ = ["Intake", "Waiting"]
