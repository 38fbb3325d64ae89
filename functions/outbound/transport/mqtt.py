"""Publishes to an MQTT broker that a tenant chose; one message at a time on a connection.

Not by a client library: paho resolves the name and connects in a blocking call, and reads packets
of up to 256 MB.

Source: MQTT 3.1.1 and MQTT 5.0 (OASIS), sections 2.2, 3.1 to 3.4, 3.14.
"""

import secrets
import ssl
import struct
from dataclasses import dataclass
from typing import Literal

from functions.outbound.transport.faults import Fault
from functions.outbound.transport.streams import READ_LIMIT_BYTES, Dialer, Stream

Version = Literal["3.1.1", "5"]

KEEP_ALIVE_S = 60
MAX_PACKETS = 20
"""How many packets a broker may send before the one that is waited for."""

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _DISCONNECT = 1, 2, 3, 4, 14
_LEVELS = {"3.1.1": 4, "5": 5}
_CLEAN_START = 0x02
_QOS_1, _RETAIN = 0x02, 0x01
_FIRST_ERROR = 0x80
_CONTENT_TYPE, _USER_PROPERTY = 0x03, 0x26
_MOST_DIGITS = 4
_PACKET_IDS = 65_535
# Codes of a CONNACK: of MQTT 3.1.1 below 6, of MQTT 5 from 0x80 on.
_CREDENTIALS_REFUSED = frozenset({4, 5, 0x86, 0x87, 0x8C})
_NOT_AUTHORIZED = 0x87
_PACKET_TOO_LARGE = 0x95
_BUSY = frozenset({3, 0x88, 0x89, 0x93, 0x96, 0x97, 0x9F})
_UNACCEPTABLE = frozenset({0x90, 0x99})


class NotMqtt(Fault):
    """The answer is not MQTT, or exceeds a bound."""

    code, reason = "PROTOCOL_ERROR", "the broker did not speak MQTT"


class NotAuthorized(Fault):
    """The broker refused the credentials, or this user may not publish on the topic."""

    code, reason = "AUTHENTICATION_FAILED", "the broker did not accept the credentials"


class NotPermitted(Fault):
    """The broker does not let this user publish on the topic."""

    code, reason = "NOT_PERMITTED", "the broker does not let this user publish on the topic"


class Busy(Fault):
    """The broker has no capacity at present, or a quota is used up."""

    code, reason = "BROKER_BUSY", "the broker takes no message at present"


class Unacceptable(Fault):
    """The broker takes neither this topic nor this payload, now or later."""

    code, reason = "MESSAGE_NOT_ACCEPTED", "the broker does not accept this topic or payload"


class RefusedByBroker(Fault):
    """The broker refused for another reason."""

    code, reason = "BROKER_REFUSED", "the broker refused the connection or the message"


class TooLarge(Fault):
    """The message is larger than the broker takes."""

    code, reason = "PAYLOAD_TOO_LARGE", "the message is larger than the broker takes"


@dataclass(frozen=True, slots=True)
class Login:
    """How the client logs in."""

    version: Version
    username: str | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """A message, sent with QoS 1.

    Attributes:
        properties: user properties of MQTT 5; an older version drops them.
    """

    topic: str
    payload: bytes
    retain: bool
    properties: tuple[tuple[str, str], ...] = ()


class MqttConnection:
    """A connection to a broker, which is used by one caller at a time."""

    def __init__(self, stream: Stream, version: Version) -> None:
        self._stream = stream
        self._version = version
        self._last_id = 0

    @classmethod
    async def open(
        cls,
        dialer: Dialer,
        host: str,
        port: int,
        login: Login,
        *,
        tls: ssl.SSLContext | None,
        timeout_s: float,
    ) -> "MqttConnection":
        """Connect and log in, under a random client id and with a clean session.

        Raises:
            DestinationRefused: the policy allows no address of the host.
            Fault: no connection, or the broker refused it.
        """
        stream = await dialer.open(host, port, tls=tls, timeout_s=timeout_s)
        try:
            connection = cls(stream, login.version)
            await stream.write(_encode_connect(login))
            answer = await connection._wait_for(_CONNACK)
            _check_connack(answer)
        except BaseException:
            stream.close()
            raise
        return connection

    @property
    def is_open(self) -> bool:
        """Whether the broker has not closed the connection, as far as is known."""
        return self._stream.is_open

    async def publish(self, publication: Publication) -> None:
        """Publish with QoS 1; returns when the broker has confirmed the message.

        Raises:
            Fault: it is not confirmed.
        """
        self._last_id = self._last_id % _PACKET_IDS + 1
        packet_id = struct.pack("!H", self._last_id)
        await self._stream.write(_encode_publish(publication, packet_id, self._version))
        answer = await self._wait_for(_PUBACK)
        # One message is under way, so another one's confirmation is none, and could come for ever.
        if answer[:2] != packet_id:
            raise NotMqtt
        # A PUBACK without a reason code means success.
        if len(answer) > 2 and answer[2] >= _FIRST_ERROR:  # noqa: PLR2004 - after the packet id
            raise _fault_of(answer[2], at_login=False)

    def close(self) -> None:
        """Close at once. The session is clean and has no will, so DISCONNECT would tell nothing."""
        self._stream.close()

    async def _wait_for(self, kind: int) -> bytes:
        for _ in range(MAX_PACKETS):
            found, body = await self._read_packet()
            if found == kind:
                return body
            if found == _DISCONNECT:
                raise _fault_of(body[0] if body else 0, at_login=kind == _CONNACK)
            if kind == _CONNACK:
                break  # It is the first packet of a broker, unless it is a DISCONNECT.
        raise NotMqtt

    async def _read_packet(self) -> tuple[int, bytes]:
        """The packet's type and body."""
        first = await self._stream.read_exactly(1)
        length, shift = 0, 0
        for _ in range(_MOST_DIGITS):
            digit = (await self._stream.read_exactly(1))[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if digit < _FIRST_ERROR:
                break
        else:
            raise NotMqtt
        if length > READ_LIMIT_BYTES:
            raise NotMqtt
        return first[0] >> 4, await self._stream.read_exactly(length)


def _check_connack(answer: bytes) -> None:
    if len(answer) < 2:  # noqa: PLR2004 - flags and code
        raise NotMqtt
    if answer[1]:
        raise _fault_of(answer[1], at_login=True)


def _encode_connect(login: Login) -> bytes:
    flags = _CLEAN_START
    fields = _text(f"route-{secrets.token_hex(8)}")
    if login.username is not None:
        flags |= 0x80
        fields += _text(login.username)
        if login.password is not None:
            flags |= 0x40
            fields += _text(login.password)
    head = _text("MQTT") + struct.pack("!BBH", _LEVELS[login.version], flags, KEEP_ALIVE_S)
    properties = b"\0" if login.version == "5" else b""
    return _packet(_CONNECT << 4, head + properties + fields)


def _encode_publish(publication: Publication, packet_id: bytes, version: Version) -> bytes:
    head = _text(publication.topic) + packet_id
    if version == "5":
        properties = bytes([_CONTENT_TYPE]) + _text("application/json")
        for name, value in publication.properties:
            properties += bytes([_USER_PROPERTY]) + _text(name) + _text(value)
        head += _length(len(properties)) + properties
    flags = _QOS_1 | (_RETAIN if publication.retain else 0)
    return _packet(_PUBLISH << 4 | flags, head + publication.payload)


def _packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + _length(len(body)) + body


def _length(number: int) -> bytes:
    digits = bytearray()
    while True:
        number, digit = divmod(number, 0x80)
        digits.append(digit | (0x80 if number else 0))
        if not number:
            return bytes(digits)


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("!H", len(raw)) + raw


def _fault_of(code: int, *, at_login: bool) -> Fault:
    if at_login and code in _CREDENTIALS_REFUSED:
        return NotAuthorized()
    if code == _NOT_AUTHORIZED:
        return NotPermitted()
    if code == _PACKET_TOO_LARGE:
        return TooLarge()
    if code in _BUSY:
        return Busy()
    return Unacceptable() if code in _UNACCEPTABLE else RefusedByBroker()


__all__ = [
    "Busy",
    "Login",
    "MqttConnection",
    "NotAuthorized",
    "NotMqtt",
    "NotPermitted",
    "Publication",
    "RefusedByBroker",
    "TooLarge",
    "Unacceptable",
    "Version",
]
