"""Counterparts of `mqtt_republish`: nats-server's MQTT listener, and a broker that refuses."""

import asyncio
import struct
from types import TracebackType
from typing import Any, Self

from tests.support.listener import Listener
from tests.support.mqtt import MqttSession
from tests.support.route_types.counterpart import Arrived, Counterpart, Scene
from tests.support.servers import NatsServer


class MqttCounterpart(Counterpart):
    """The MQTT listener of a nats-server, with a subscriber; scenes are played by `MqttBroker`."""

    type_name = "mqtt_republish"
    module = "functions.route_delivery.mqtt_republish"
    secrets = (NatsServer.mqtt_password,)
    # A message of MQTT 3.1.1 has no place for an id.
    has_identity = False
    wrong = (
        {"host": "a b"},
        {"port": 70_000},
        {"topic": "a/#"},
        {"topic": "$SYS/broker"},
        {"topic": "{payload.a"},
        {"version": "4"},
        {"body": "everything"},
        {"password": "p"},
        {"tls": True, "authorities": "none"},
        {"tls": True, "client_certificate": "-----BEGIN CERTIFICATE-----"},
    )

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._user, self._password = server.mqtt_user, server.mqtt_password
        self.broker = MqttBroker()

    async def __aenter__(self) -> Self:
        self._session = MqttSession(self._server.mqtt_port, self._user, self._password)
        await asyncio.to_thread(self._session.__enter__)
        await asyncio.to_thread(self._session.subscribe, "tenant/+/out/#")
        await self.broker.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.broker.__aexit__(kind, error, traceback)
        await asyncio.to_thread(self._session.__exit__, kind, error, traceback)

    def config(self) -> dict[str, Any]:
        return {
            "host": "localhost",
            "port": self._server.mqtt_port,
            "version": "3.1.1",
            "username": self._user,
            "password": self._password,
            "topic": "tenant/{tenant_id}/out/{payload.metrics.temp}",
        }

    def at(self, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"port": port}, {}

    async def arrived(self, count: int) -> list[Arrived]:
        messages = [
            await asyncio.to_thread(self._session.received.get, True, 10) for _ in range(count)
        ]
        for message in messages:
            self._session.received.put(message)
        return [Arrived("", message.payload.decode()) for message in messages]

    async def refused(self) -> Scene:
        return self._scene("MESSAGE_NOT_ACCEPTED", 0x90)

    async def failed(self) -> Scene:
        return self._scene("NOT_PERMITTED", 0x87)

    async def later(self) -> Scene:
        return self._scene("BROKER_BUSY", 0x97)

    def _scene(self, code: str, reason: int) -> Scene:
        self.broker.reason = reason
        return Scene(code, {"port": self.broker.port, "version": "5"})


class MqttBroker(Listener):
    """Answers each publication with a reason code of MQTT 5.

    Attributes:
        reason: the code.
        packets: first byte and body of each packet that arrived.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reason = 0
        self.packets: list[tuple[int, bytes]] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first, body = await _read_packet(reader)
                self.packets.append((first, body))
                if first >> 4 == 1:
                    writer.write(b"\x20\x03\x00\x00\x00")
                elif first >> 4 == 3:
                    (length,) = struct.unpack("!H", body[:2])
                    packet_id = body[2 + length : 4 + length]
                    writer.write(b"\x40\x03" + packet_id + bytes([self.reason]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


async def _read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            return first, await reader.readexactly(length)
