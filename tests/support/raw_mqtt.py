"""An MQTT 3.1.1 client that sends what a test gives it, also what no library would."""

import asyncio
import contextlib
import struct
from typing import Self

ACCEPTED, NOT_AUTHORIZED = 0, 5
"""Answers to CONNECT."""
CLEAN = 0x02
_USER, _PASSWORD = 0x80, 0x40


class RawMqtt:
    """A connection to a broker on 127.0.0.1; `async with await RawMqtt.open(port) as client:`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, *, source: str = "127.0.0.1") -> Self:
        """A TCP connection that comes from the address `source`."""
        pair = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        return cls(*pair)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection without DISCONNECT, as a lost one."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def connect(
        self, client_id: str, user: str, password: str, *, flags: int = CLEAN, will: bytes = b""
    ) -> int | None:
        """Log in; the broker's answer, None when it ends the connection instead.

        Args:
            client_id: the client id.
            user: the user name.
            password: the password.
            flags: of CONNECT, without those of user name and password; 0 to keep the session.
            will: topic and payload of the will as `text` and `text` make them.
        """
        body = text("MQTT") + bytes([4, flags | _USER | _PASSWORD]) + b"\x00\x00"
        body += text(client_id) + will + text(user) + text(password)
        try:
            await self.send(0x10, body)
            answer = await self.read()
        except (OSError, asyncio.IncompleteReadError):
            return None
        assert answer[0] == 0x20, answer
        return answer[1][1]

    async def send(self, first_byte: int, body: bytes) -> None:
        """Send a packet."""
        self._writer.write(bytes([first_byte]) + _length(len(body)) + body)
        await self._writer.drain()

    async def read(self) -> tuple[int, bytes]:
        """The first byte and the body of the next packet.

        Raises:
            asyncio.IncompleteReadError: the broker has ended the connection.
        """
        async with asyncio.timeout(60):
            first = (await self._reader.readexactly(1))[0]
            length = shift = 0
            while True:
                digit = (await self._reader.readexactly(1))[0]
                length |= (digit & 0x7F) << shift
                shift += 7
                if digit < 0x80:
                    break
            return first, await self._reader.readexactly(length)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, packet_id: int = 1
    ) -> None:
        """Send PUBLISH, and wait for nothing."""
        number = struct.pack("!H", packet_id) if qos else b""
        await self.send(0x30 | qos << 1 | retain, text(topic) + number + payload)

    async def deliver(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 1; returns when the broker has acknowledged it."""
        await self.publish(topic, payload, qos=1)
        assert await self.read() == (0x40, b"\x00\x01")

    async def subscribe(self, topic: str, *, qos: int = 1, packet_id: int = 1) -> int:
        """Subscribe; the granted QoS, 128 for a refusal."""
        await self.send(0x82, struct.pack("!H", packet_id) + text(topic) + bytes([qos]))
        first, body = await self.read()
        assert first == 0x90, first
        return body[2]

    async def subscribe_unchecked(self, topic: str) -> None:
        """Ask for a subscription, whether or not the broker still listens."""
        with contextlib.suppress(OSError):
            await self.send(0x82, b"\x00\x09" + text(topic) + b"\x01")

    async def ping(self) -> None:
        """Return when the broker has handled all that was sent before; skips other packets."""
        await self.send(0xC0, b"")
        while (await self.read())[0] != 0xD0:
            pass

    async def wait_for_end(self) -> None:
        """Return when the broker has ended the connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self.read()


async def log_in(
    port: int, device: str, token: str, *, client_id: str = "", source: str = "127.0.0.1"
) -> int | None:
    """The broker's answer to the login of a device `tenant/device`; the connection ends."""
    async with await RawMqtt.open(port, source=source) as client:
        return await client.connect(client_id or device, device, token)


def text(value: str) -> bytes:
    """A text as MQTT writes it, with its length before it."""
    return struct.pack("!H", len(value.encode())) + value.encode()


def _length(number: int) -> bytes:
    digits = bytearray()
    while True:
        number, digit = divmod(number, 0x80)
        digits.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(digits)
