"""A connection to an MQTT 5 broker, with a client of paho-mqtt of its own.

So nothing of a broken connection lives on in the next one.
Source: MQTT 5.0 (OASIS), sections 3.1 to 3.14 and 4.6.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from functions.domain.downlink_marks import SENT_BY
from functions.mqtt_bridge.client import BridgeClient
from functions.mqtt_bridge.dialing import dial, properties_of, text_of
from functions.mqtt_bridge.driver import Driver
from functions.mqtt_bridge.outcomes import (
    PACKET_TOO_LARGE,
    Disconnected,
    NotPublished,
    disconnected_by,
)
from functions.mqtt_bridge.received import Received
from functions.mqtt_bridge.settings import BrokerSettings

Receive = Callable[["MqttConnection", Received], bool]
"""Takes a message of a connection, in the event loop; it must not block. False: read no further."""

_DO_NOT_SEND_RETAINED = 2
_FIRST_ERROR = 0x80
_MOST_WAITING = 1000
_MOST_UNCONFIRMED = 10
"""Less than any broker's receive maximum that is known of, as paho does not look at it."""
_LARGEST_PACKET_BYTES = 268_435_460
_PACKET_OVERHEAD_BYTES = 150
"""Header, lengths and properties of a PUBLISH, rounded up."""


class MqttConnection:
    """One connection, from CONNACK to its end.

    Attributes:
        resumed: whether the broker has kept a session of this client id.
        marks_subscriptions: whether the broker takes subscription identifiers.
        ended: done when the connection has ended; its result says why.
    """

    def __init__(self, client_id: str, receive: Receive | None) -> None:
        self._loop = asyncio.get_running_loop()
        self.resumed = False
        self.marks_subscriptions = True
        self.ended: asyncio.Future[Disconnected] = self._loop.create_future()
        self._client = BridgeClient(client_id, self._on_publish_received, self._on_pong)
        self._client.max_inflight_messages_set(_MOST_UNCONFIRMED)
        self._receive = receive
        self._accepted: asyncio.Future[ReasonCode] = self._loop.create_future()
        self._granted: dict[int, asyncio.Future[Sequence[ReasonCode]]] = {}
        self._confirmed: dict[int, asyncio.Future[None]] = {}
        self._answered: asyncio.Future[None] = self._loop.create_future()
        self._max_packet_bytes = _LARGEST_PACKET_BYTES
        self._driver = Driver(self._client)

    @classmethod
    async def open(
        cls,
        settings: BrokerSettings,
        *,
        client_id: str,
        session_expiry_s: int = 0,
        receive_maximum: int = 1,
        receive: Receive | None = None,
    ) -> "MqttConnection":
        """Connect and log in.

        Args:
            settings: the broker.
            client_id: names the session; empty lets the broker choose.
            session_expiry_s: how long the broker keeps the session after the connection; with 0 it
                begins and ends with it.
            receive_maximum: messages that the broker may send without an acknowledgement.
            receive: called with each message, also before this function returns. Each message with
                a packet id needs an `acknowledge`.

        Raises:
            Disconnected: there is no connection.
        """
        self = cls(client_id, receive)
        try:
            async with asyncio.timeout(settings.connect_timeout_s):
                await dial(
                    self._client,
                    settings,
                    session_expiry_s=session_expiry_s,
                    receive_maximum=receive_maximum,
                )
                self._attach()
                code = await self._accepted
        except TimeoutError:
            self._break()
            raise Disconnected("the broker did not answer in time") from None
        except (OSError, ValueError) as failure:
            # Of resolving, connecting and TLS. A file that cannot be read is one, too.
            self._break()
            raise Disconnected(text_of(failure)) from failure
        except BaseException:
            self._break()
            raise
        if code.value >= _FIRST_ERROR:
            self._break()
            raise disconnected_by(code, "the broker refused the connection")
        return self

    @property
    def is_open(self) -> bool:
        """Whether the connection has not ended, as far as is known."""
        return not self.ended.done()

    async def subscribe(self, filters: Sequence[str], identifier: int | None) -> int:
        """Subscribe with QoS 1, without messages that the broker has retained.

        Args:
            filters: topic filters; a subscription that exists is replaced without a gap.
            identifier: the broker adds it to each message of these subscriptions.

        Returns:
            The lowest QoS that the broker has granted.

        Raises:
            Disconnected: the broker refused one, or the connection ended.
        """
        properties = properties_of(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=identifier)
        options = SubscribeOptions(qos=1, retainHandling=_DO_NOT_SEND_RETAINED)
        wanted = [(topic, options) for topic in filters]
        code, mid = self._client.subscribe(wanted, properties=properties)
        if code is not MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise self._end(Disconnected("the connection is closed"))
        answer = self._granted[mid] = self._loop.create_future()
        granted: Sequence[ReasonCode] = await self._answer_to(answer)
        for given in granted:
            if given.value >= _FIRST_ERROR:
                raise Disconnected(
                    f"the broker refused the subscription: {given}", needs_a_person=True
                )
        return min(given.value for given in granted)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions that the session may have."""
        if self.is_open:
            self._client.unsubscribe(list(filters))

    async def publish(
        self, topic: str, payload: bytes, *, mark: str, expires_in_s: int | None = None
    ) -> None:
        """Publish with QoS 1; returns when the broker has confirmed the message.

        Args:
            topic: a valid topic.
            payload: any bytes.
            mark: the value of the message's user property `SENT_BY`.
            expires_in_s: after so long the broker drops a message that it could not deliver.

        Raises:
            Disconnected: the connection ended; the broker may have the message.
            NotPublished: the broker refused the message, or says that it takes none so large.
        """
        if len(topic) + len(payload) + _PACKET_OVERHEAD_BYTES > self._max_packet_bytes:
            raise NotPublished(PACKET_TOO_LARGE, "Packet too large")
        properties = properties_of(
            PacketTypes.PUBLISH, UserProperty=(SENT_BY, mark), MessageExpiryInterval=expires_in_s
        )
        if not self.is_open or len(self._confirmed) >= _MOST_WAITING:
            raise Disconnected("there is no connection, or too much waits for it")
        sent = self._client.publish(topic, payload, qos=1, properties=properties)
        if sent.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._end(Disconnected("the connection is closed"))
        confirmed = self._confirmed[sent.mid] = self._loop.create_future()
        try:
            await self._answer_to(confirmed)
        finally:
            self._confirmed.pop(sent.mid, None)

    def acknowledge(self, packet_id: int, qos: int) -> None:
        """Say that a message is stored; nothing is sent when the connection has ended.

        Call it in the order of the messages: MQTT 5.0, section 4.6.
        """
        if self.is_open:
            self._client.acknowledge(packet_id, qos)

    def pause(self) -> None:
        """Read no further, so that the broker has to wait."""
        self._driver.pause()

    def resume(self) -> None:
        """Read again."""
        self._driver.resume()

    async def flush(self) -> None:
        """Return when the broker has taken all acknowledgements, or the connection has ended.

        What comes meanwhile is dropped, and not acknowledged. A socket that is closed while it has
        something unread takes back what the broker has not read yet.
        """
        self._receive = None
        self.resume()
        self._answered = self._loop.create_future()
        if self.is_open:
            self._client.ping()
        with suppress(Disconnected):
            await self._answer_to(self._answered)

    def close(self) -> None:
        """Say DISCONNECT and close. The broker keeps the session for its time."""
        if self.is_open and self._driver.is_open:
            self._client.disconnect()
        self._break()

    async def _answer_to(self, awaited: "asyncio.Future[Any]") -> Any:  # noqa: ANN401 - of the future
        await asyncio.wait({awaited, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        if not awaited.done():
            raise self.ended.result()
        return awaited.result()

    def _attach(self) -> None:
        """Hear of what the connected client receives."""
        client = self._client
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_disconnect = self._on_disconnect
        if not self._driver.start():
            raise self._end(Disconnected("the connection was closed at once"))

    def _break(self) -> None:
        """Close the socket, whatever state it is in."""
        self._receive = None
        self._driver.stop()
        self._end(Disconnected("the connection is closed"))

    def _end(self, why: Disconnected) -> Disconnected:
        if not self.ended.done():
            self.ended.set_result(why)
        return self.ended.result()

    def _on_pong(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)

    # paho defines the signatures.
    def _on_connect(
        self,
        _client: Client,
        _data: object,
        flags: ConnectFlags,
        code: ReasonCode,
        properties: object,
    ) -> None:
        self.resumed = flags.session_present
        self.marks_subscriptions = getattr(properties, "SubscriptionIdentifierAvailable", 1) != 0
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", _LARGEST_PACKET_BYTES)
        if not self._accepted.done():
            self._accepted.set_result(code)

    def _on_publish_received(self, message: Received) -> None:
        if self._receive is not None and not self._receive(self, message):
            self._driver.pause()

    def _on_subscribe(
        self, _client: Client, _data: object, mid: int, codes: list[ReasonCode], _properties: object
    ) -> None:
        answer = self._granted.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(codes)

    def _on_publish(
        self, _client: Client, _data: object, mid: int, code: ReasonCode, _properties: object
    ) -> None:
        confirmed = self._confirmed.get(mid)
        if confirmed is None or confirmed.done():
            return
        if code.value >= _FIRST_ERROR:
            confirmed.set_exception(NotPublished(code.value, str(code)))
        else:
            confirmed.set_result(None)

    def _on_disconnect(
        self,
        _client: Client,
        _data: object,
        flags: DisconnectFlags,
        code: ReasonCode,
        _properties: object,
    ) -> None:
        said = "the broker said" if flags.is_disconnect_packet_from_server else "the connection"
        if not self._accepted.done():
            self._accepted.set_exception(Disconnected("the broker closed the connection"))
            self._accepted.exception()
        self._end(disconnected_by(code, said))


__all__ = ["MqttConnection", "Receive"]
