"""A real MQTT client for tests, with waits instead of callbacks."""

import asyncio
import queue
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

_TIMEOUT_S = 10.0


class MqttSession:
    """One MQTT 3.1.1 connection; `with MqttSession(port, user, password) as session:`.

    Attributes:
        connected: the broker's answer to CONNECT, such as "Success" or "Not authorized".
        received: the messages of all subscriptions.
        ended: set when a connection has ended; the client then connects again by itself.
    """

    def __init__(
        self,
        port: int,
        username: str | None = None,
        password: str | None = None,
        *,
        client_id: str = "",
        keeps_session: bool = False,
    ) -> None:
        self.ended = threading.Event()
        self.connected = ""
        self.received: queue.Queue[MQTTMessage] = queue.Queue()
        self._granted: queue.Queue[str] = queue.Queue()
        self._answered = threading.Event()
        self._port = port
        self._host = "127.0.0.1"
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=not keeps_session
        )
        if username is not None:
            self._client.username_pw_set(username, password)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe

    def use_tls(self, authorities: Path, certificate: Path) -> None:
        """Connect by TLS to `localhost` with a client certificate; call it before the start."""
        self._client.tls_set(str(authorities), str(certificate), str(certificate))
        self._host = "localhost"

    def __enter__(self) -> Self:
        self._client.connect(self._host, self._port)
        self._client.loop_start()
        assert self._answered.wait(_TIMEOUT_S), "the broker did not answer CONNECT"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(
        self, topic: str, payload: str | bytes, qos: int = 1, *, retain: bool = False
    ) -> None:
        """Return when the message is sent; for QoS 1 and 2, when the broker confirmed it."""
        self._client.publish(topic, payload, qos, retain).wait_for_publish(_TIMEOUT_S)

    def subscribe(self, topic: str, qos: int = 1) -> str:
        """Subscribe; the broker's answer, such as "Granted QoS 1" or "Unspecified error"."""
        self._client.subscribe(topic, qos)
        return self._granted.get(timeout=_TIMEOUT_S)

    # paho defines the signatures.
    def _on_connect(
        self, _client: Client, _data: Any, _flags: Any, reason: Any, _more: Any
    ) -> None:
        self.connected = str(reason)
        self._answered.set()

    def _on_disconnect(
        self, _client: Client, _data: Any, _flags: Any, _reason: Any, _more: Any
    ) -> None:
        self.ended.set()

    def _on_message(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        self.received.put(message)

    def _on_subscribe(
        self, _client: Client, _data: Any, _id: int, reasons: Any, _more: Any
    ) -> None:
        self._granted.put(str(reasons[0]))


async def publish_with_dup(port: int, topic: str, login: tuple[str, str] | None = None) -> None:
    """Publish `{}` with QoS 1, and again as a device does that missed the PUBACK."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        flags = b"\xc2" if login else b"\x02"
        names = b"".join(map(_encode, ("repeating", *(login or ()))))
        writer.write(_packet(0x10, _encode("MQTT") + b"\x04" + flags + b"\x00\x3c" + names))
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        for first_byte in (0x32, 0x3A):  # QoS 1, and with the DUP flag.
            writer.write(_packet(first_byte, _encode(topic) + b"\x00\x07{}"))
            assert await reader.readexactly(4) == b"\x40\x02\x00\x07"
    finally:
        writer.close()


def publish_many(port: int, topic: str, count: int) -> None:
    """Publish the payloads `0`, `1` and so on with QoS 1; returns when the broker has all."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(500)
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        for sent in [client.publish(topic, f"{number}", 1) for number in range(count)]:
            sent.wait_for_publish(10 * _TIMEOUT_S)
    finally:
        client.disconnect()
        client.loop_stop()


def publish_with_properties(
    port: int, topic: str, payload: str, properties: Sequence[tuple[str, str]]
) -> None:
    """Publish with QoS 1 and user properties by MQTT 5; returns when the broker confirmed it."""
    published = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_publish = lambda *_: published.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        found.UserProperty = list(properties)
        client.publish(topic, payload, 1, properties=found)
        assert published.wait(_TIMEOUT_S), "the broker did not confirm a message"
    finally:
        client.disconnect()
        client.loop_stop()


def _encode(value: str) -> bytes:
    return struct.pack("!H", len(value.encode())) + value.encode()


def _packet(first_byte: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([first_byte, len(body)]) + body
