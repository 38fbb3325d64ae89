"""Publishes to a NATS server that a tenant chose; one message at a time on a connection.

Not by a client library: libraries resolve the name themselves, connect to the further servers that
the first one names, and read messages of any size.

Source: NATS documentation, "Client protocol"; NATS ADR-4 (headers).
"""

import base64
import json
import secrets
import ssl
from typing import Any

from functions.domain.nats_credentials import Credentials, public_key, read_seed
from functions.outbound.transport.faults import Fault
from functions.outbound.transport.streams import READ_LIMIT_BYTES, Dialer, Stream

MAX_LINES = 100
"""How many protocol lines a server may send before the answer that is waited for."""

_NO_RESPONDERS = b" 503"


class NotNats(Fault):
    """The answer is not NATS, or exceeds a bound."""

    code, reason = "PROTOCOL_ERROR", "the server did not speak NATS"


class NotAuthorized(Fault):
    """The server refused the credentials."""

    code, reason = "AUTHENTICATION_FAILED", "the server did not accept the credentials"


class NotPermitted(Fault):
    """The server does not let this user publish on the subject."""

    code, reason = "NOT_PERMITTED", "the server does not let this user publish on the subject"


class NoStream(Fault):
    """No stream of the account has the subject."""

    code, reason = "NO_STREAM", "no stream has the subject"


class NotStored(Fault):
    """JetStream refused to store the message."""

    code, reason = "NOT_STORED", "the stream did not store the message"


class TooLarge(Fault):
    """The message is larger than the server takes."""

    code, reason = "PAYLOAD_TOO_LARGE", "the message is larger than the server takes"


class NatsConnection:
    """A connection to a server, which is used by one caller at a time."""

    def __init__(self, stream: Stream, *, max_payload_bytes: int, takes_headers: bool) -> None:
        self._stream = stream
        self._max_payload_bytes = max_payload_bytes
        self._takes_headers = takes_headers
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._published = 0

    @classmethod
    async def open(
        cls,
        dialer: Dialer,
        host: str,
        port: int,
        credentials: Credentials,
        *,
        tls: ssl.SSLContext,
        needs_tls: bool,
        timeout_s: float,
    ) -> "NatsConnection":
        """Connect and log in; under TLS if the caller or the server asks for it.

        Raises:
            DestinationRefused: the policy allows no address of the host.
            Fault: no connection, or the server refused it.
        """
        stream = await dialer.open(host, port, timeout_s=timeout_s)
        try:
            told = _read_info(await stream.read_line())
            is_tls = needs_tls or bool(told.get("tls_required"))
            if is_tls:
                await stream.start_tls(tls, host)
            connection = cls(
                stream,
                max_payload_bytes=int(told.get("max_payload", READ_LIMIT_BYTES)),
                takes_headers=bool(told.get("headers")),
            )
            hello = _hello(told, credentials, is_tls=is_tls)
            await stream.write(
                b"CONNECT %b\r\nSUB %b.* 1\r\nPING\r\n"
                % (json.dumps(hello).encode(), connection._inbox.encode())
            )
            await connection._wait_for(b"PONG")
        except BaseException:
            stream.close()
            raise
        return connection

    @property
    def is_open(self) -> bool:
        """Whether the server has not closed the connection, as far as is known."""
        return self._stream.is_open

    async def publish(self, subject: str, data: bytes, *, msg_id: str) -> None:
        """Publish without a stream; returns when the server has taken the message.

        Raises:
            Fault: the server did not take it.
        """
        message = self._encode(subject, None, data, msg_id)
        await self._stream.write(message + b"PING\r\n")
        await self._wait_for(b"PONG")

    async def store(self, subject: str, data: bytes, *, msg_id: str) -> None:
        """Publish into a stream; returns when JetStream has stored the message.

        Raises:
            Fault: it is not stored.
        """
        self._published += 1
        reply = f"{self._inbox}.{self._published}"
        await self._stream.write(self._encode(subject, reply, data, msg_id))
        answer = await self._wait_for(reply.encode())
        try:
            ack = json.loads(answer)
        except (ValueError, RecursionError):
            raise NotNats from None
        if not isinstance(ack, dict) or "error" in ack or "seq" not in ack:
            raise NotStored

    def close(self) -> None:
        """Close at once."""
        self._stream.close()

    def _encode(self, subject: str, reply: str | None, data: bytes, msg_id: str) -> bytes:
        headers = b"NATS/1.0\r\nNats-Msg-Id: %b\r\n\r\n" % msg_id.encode("ascii")
        if not self._takes_headers:
            headers = b""
        size = len(headers) + len(data)
        if size > self._max_payload_bytes:
            raise TooLarge
        to = f"{subject} {reply}" if reply else subject
        if headers:
            return b"HPUB %b %d %d\r\n%b%b\r\n" % (to.encode(), len(headers), size, headers, data)
        return b"PUB %b %d\r\n%b\r\n" % (to.encode(), size, data)

    async def _wait_for(self, wanted: bytes) -> bytes:
        """Read until `PONG`, or until the message on the subject `wanted`; its data."""
        for _ in range(MAX_LINES):
            line = (await self._stream.read_line()).rstrip(b"\r\n")
            verb, _, rest = line.partition(b" ")
            if verb == b"PONG" == wanted:
                return b""
            if verb == b"PING":
                await self._stream.write(b"PONG\r\n")
            elif verb == b"-ERR":
                raise _fault_of(rest)
            elif verb in {b"MSG", b"HMSG"}:
                subject, headers, data = await self._read_message(verb, rest)
                if subject == wanted:
                    if headers.split(b"\r\n")[0].startswith(b"NATS/1.0" + _NO_RESPONDERS):
                        raise NoStream
                    return data
            elif verb not in {b"+OK", b"INFO", b"PONG"}:
                raise NotNats
        raise NotNats

    async def _read_message(self, verb: bytes, rest: bytes) -> tuple[bytes, bytes, bytes]:
        fields = rest.split()
        try:
            total = int(fields[-1])
            head = int(fields[-2]) if verb == b"HMSG" else 0
            subject = fields[0]
        except (IndexError, ValueError):
            raise NotNats from None
        if not 0 <= head <= total <= READ_LIMIT_BYTES:
            raise NotNats
        body = await self._stream.read_exactly(total + 2)
        return subject, body[:head], body[head:total]


def _read_info(line: bytes) -> dict[str, Any]:
    verb, _, rest = line.partition(b" ")
    try:
        told = json.loads(rest)
        int(told.get("max_payload", 0))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise NotNats from None
    if verb != b"INFO":
        raise NotNats
    found: dict[str, Any] = told
    return found


def _hello(told: dict[str, Any], credentials: Credentials, *, is_tls: bool) -> dict[str, Any]:
    hello: dict[str, Any] = {
        "verbose": False,
        "pedantic": False,
        "tls_required": is_tls,
        "name": "route delivery",
        "lang": "python",
        "version": "1",
        "protocol": 1,
        "headers": True,
        "no_responders": True,
    }
    if credentials.user is not None:
        hello |= {"user": credentials.user, "pass": credentials.password or ""}
    if credentials.token is not None:
        hello["auth_token"] = credentials.token
    if credentials.seed is not None:
        key = read_seed(credentials.seed)
        signature = key.sign(str(told.get("nonce", "")).encode())
        hello["sig"] = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
        if credentials.jwt is not None:
            hello["jwt"] = credentials.jwt
        else:
            hello["nkey"] = public_key(key)
    return hello


def _fault_of(text: bytes) -> Fault:
    said = text.strip(b"' ").lower()
    if said.startswith((b"authorization", b"user authentication", b"account authentication")):
        return NotAuthorized()
    if said.startswith(b"permissions violation"):
        return NotPermitted()
    if said.startswith(b"maximum payload"):
        return TooLarge()
    return NotNats()


__all__ = [
    "NatsConnection",
    "NoStream",
    "NotAuthorized",
    "NotNats",
    "NotPermitted",
    "NotStored",
    "TooLarge",
]
