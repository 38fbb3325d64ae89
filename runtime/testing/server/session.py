"""One client's connection to the server in memory: parses commands, writes messages."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from runtime.testing.server.subscriptions import Subscription, Subscriptions

MAX_PAYLOAD_BYTES = 1024 * 1024
NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
_SUB_WITH_QUEUE = 3
_PUB_WITH_REPLY = 3
_HPUB_WITH_REPLY = 4


class Handler(Protocol):
    """The part of the server that takes what clients publish."""

    subscriptions: Subscriptions

    def publish(self, subject: str, reply: str, block: bytes, data: bytes) -> bool:
        """Take a message; return whether anything answered, stored or received it."""


class MemorySession:
    """Implements `runtime.broker.memory_transport.Session`.

    Args:
        server: takes what the client publishes.
        info: the INFO document.
        send: sends bytes to the client.
        end: ends the connection.
    """

    def __init__(
        self,
        server: Handler,
        info: Mapping[str, Any],
        send: Callable[[bytes], None],
        end: Callable[[], None],
    ) -> None:
        self._server = server
        self._send = send
        self._end = end
        self._buffer = b""
        send(b"INFO " + json.dumps(info).encode() + b"\r\n")

    def receive(self, data: bytes) -> None:
        """Obey all whole commands."""
        self._buffer = data if not self._buffer else self._buffer + data
        position = 0
        while (end := self._buffer.find(b"\r\n", position)) >= 0:
            after = self._obey(self._buffer[position:end], end + 2)
            if after < 0:
                break
            position = after
        self._buffer = self._buffer[position:]

    def close(self) -> None:
        """Forget the client's subscriptions."""
        self._server.subscriptions.remove(self)

    def end(self) -> None:
        """End the connection from the server's side."""
        self.close()
        self._end()

    def _obey(self, line: bytes, begin: int) -> int:
        """Obey a command; return where the next begins, or -1 when its payload is incomplete."""
        words = line.decode("utf-8", "surrogateescape").split()
        verb, arguments = (words[0].upper(), words[1:]) if words else ("", [])
        if verb in ("PUB", "HPUB"):
            return self._publish(verb, arguments, begin)
        if verb == "PING":
            self._send(b"PONG\r\n")
        elif verb == "SUB":
            queue = arguments[1] if len(arguments) == _SUB_WITH_QUEUE else ""
            self._server.subscriptions.add(
                Subscription(self, int(arguments[-1]), arguments[0], queue, self._deliver)
            )
        elif verb == "UNSUB":
            self._unsubscribe(int(arguments[0]), int(arguments[1]) if arguments[1:] else 0)
        elif verb not in ("CONNECT", "PONG", ""):
            self._send(b"-ERR 'Unknown Protocol Operation'\r\n")
            self.end()
        return begin

    def _publish(self, verb: str, arguments: list[str], begin: int) -> int:
        size = int(arguments[-1])
        if len(self._buffer) < begin + size + 2:
            return -1
        if size > MAX_PAYLOAD_BYTES:
            self._send(b"-ERR 'Maximum Payload Violation'\r\n")
            self.end()
            return begin + size + 2
        head = int(arguments[-2]) if verb == "HPUB" else 0
        with_reply = _HPUB_WITH_REPLY if verb == "HPUB" else _PUB_WITH_REPLY
        subject, reply = arguments[0], arguments[1] if len(arguments) == with_reply else ""
        block = self._buffer[begin : begin + head]
        data = self._buffer[begin + head : begin + size]
        if not self._server.publish(subject, reply, block, data) and reply:
            self._server.subscriptions.route(reply, "", NO_RESPONDERS, b"")
        return begin + size + 2

    def _unsubscribe(self, sid: int, after: int) -> None:
        found = self._server.subscriptions.find(self, sid)
        if found is not None and after:
            found.left = after
        else:
            self._server.subscriptions.remove(self, sid)

    def _deliver(self, sid: int, subject: str, reply: str, block: bytes, data: bytes) -> None:
        names = f"{subject} {sid}{' ' if reply else ''}{reply}".encode("utf-8", "surrogateescape")
        if block:
            sizes = b" %d %d\r\n" % (len(block), len(block) + len(data))
            self._send(b"HMSG " + names + sizes + block + data + b"\r\n")
        else:
            self._send(b"MSG " + names + b" %d\r\n" % len(data) + data + b"\r\n")
