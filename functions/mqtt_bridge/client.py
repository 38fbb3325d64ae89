"""paho-mqtt's client, with a reader of PUBLISH of its own, and one that may be left unread.

It overrides methods that paho does not document; paho-mqtt 2.1 and 2.2 call them, and the tests of
the bridge with a real broker fail where they are not called.
"""

from collections.abc import Callable
from time import monotonic

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from functions.mqtt_bridge.received import Received, read_publish

_EXACTLY_ONCE = 2


class BridgeClient(Client):
    """An MQTT 5 client whose messages are acknowledged by `acknowledge` and nothing else.

    Args:
        client_id: names the session; empty lets the broker choose.
        receive: called with each message.
        on_pong: called when the broker has answered a ping.

    Attributes:
        packets: how many it has read.
    """

    def __init__(
        self, client_id: str, receive: Callable[[Received], None], on_pong: Callable[[], None]
    ) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        self.packets = 0
        self._receive = receive
        self._on_pong = on_pong

    def acknowledge(self, packet_id: int, qos: int) -> None:
        """Say that a message is stored: PUBACK, or with QoS 2 PUBREC.

        The bridge asks for QoS 1. The broker may have messages with QoS 2 for a session which
        another program has had.
        """
        if qos == _EXACTLY_ONCE:
            self._send_pubrec(packet_id)
        else:
            self.ack(packet_id, qos)

    def ping(self) -> None:
        """Ask the broker for an answer, which comes after those to all that was sent before."""
        self._send_pingreq()

    def expect_no_answer(self) -> None:
        """Forget that the broker has been asked whether it is there.

        For as long as nothing is read, so is its answer not.
        """
        self._ping_t = 0.0
        with self._msgtime_mutex:
            self._last_bytes_received = monotonic()

    def _packet_handle(self) -> MQTTErrorCode:
        self.packets += 1
        return super()._packet_handle()

    def _handle_publish(self) -> MQTTErrorCode:
        packet = self._in_packet
        message = read_publish(packet["command"], packet["packet"])
        if message is None:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._receive(message)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pingresp(self) -> MQTTErrorCode:
        self._on_pong()
        return super()._handle_pingresp()

    def _handle_pubrel(self) -> MQTTErrorCode:
        """Send the last answer for QoS 2: the message was stored before PUBREC."""
        packet_id = int.from_bytes(self._in_packet["packet"][:2])
        return super()._handle_pubrel() or self._send_pubcomp(packet_id)


__all__ = ["BridgeClient"]
