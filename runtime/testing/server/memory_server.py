"""A NATS server with JetStream in memory, to which clients connect without a socket."""

import itertools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from runtime.broker.memory_transport import register
from runtime.testing.server.api import PREFIX, JetStreamApi
from runtime.testing.server.errors import NotModelled, Refused
from runtime.testing.server.session import MAX_PAYLOAD_BYTES, MemorySession
from runtime.testing.server.store import Stored
from runtime.testing.server.subscriptions import Subscriptions
from runtime.testing.server.times import WallClock

VERSION = "2.15.1"
"""The server whose behaviour is modelled."""
_PULL = f"{PREFIX}CONSUMER.MSG.NEXT."
_ACK = "$JS.ACK."
_numbers = itertools.count(1)


class MemoryServer:
    """Runs on the current event loop, until `close`.

    Attributes:
        url: the address for `Broker.connect`.
        subscriptions: of all clients.
        not_modelled: what clients asked for and the server does not model, oldest first.
    """

    def __init__(self, now: datetime) -> None:
        name = f"memory-{next(_numbers)}"
        self.url = f"nats://{name}"
        self.clock = WallClock(now)
        self.subscriptions = Subscriptions()
        self.not_modelled: list[str] = []
        self.api = JetStreamApi(self.clock, self, self._post)
        self._sessions: set[MemorySession] = set()
        self._clients = itertools.count(1)
        self._unregister = register(name, self._accept)

    def close(self) -> None:
        """End all connections and timers."""
        self._unregister()
        for stream in self.api.streams.values():
            stream.close()
        for session in list(self._sessions):
            session.end()

    def held(self, stream: str, consumer: str) -> int:
        """The number of messages of a consumer that clients work on."""
        found = self.api.streams.get(stream)
        of_stream = found.consumers.get(consumer) if found else None
        return of_stream.held() if of_stream else 0

    def publish(self, subject: str, reply: str, block: bytes, data: bytes) -> bool:
        """Take a message; return whether anything answered, stored or received it."""
        if subject.startswith("$JS."):
            return self._jetstream(subject, reply, block, data)
        heard = self.subscriptions.route(subject, reply, block, data)
        return self._store(subject, reply, block, data) or heard > 0

    def deliver(self, message: Stored, inbox: str, reply: str) -> None:
        """Send a stored message to a pull request: on its subject, to whoever has the inbox."""
        self.subscriptions.route_as(inbox, message.subject, reply, message.block, message.data)

    def status(self, inbox: str, block: bytes) -> None:
        """Send a status to a pull request."""
        self.subscriptions.route(inbox, "", block, b"")

    def advise(self, subject: str, document: dict[str, Any]) -> None:
        """Publish an advisory."""
        data = json.dumps(document).encode()
        self.subscriptions.route(subject, "", b"", data)
        self._store(subject, "", b"", data)

    def has_interest(self, subject: str) -> bool:
        """Whether a client listens on the subject."""
        return self.subscriptions.has_interest(subject)

    def _accept(self, send: Callable[[bytes], None], end: Callable[[], None]) -> MemorySession:
        info = {
            "server_id": "MEMORY",
            "server_name": "memory",
            "version": VERSION,
            "go": "none",
            "host": "memory",
            "port": 0,
            "headers": True,
            "jetstream": True,
            "max_payload": MAX_PAYLOAD_BYTES,
            "proto": 1,
            "client_id": next(self._clients),
        }
        session = MemorySession(self, info, send, end)
        self._sessions.add(session)
        return session

    def _jetstream(self, subject: str, reply: str, block: bytes, data: bytes) -> bool:
        try:
            if subject.startswith(_PULL):
                self.api.pull(subject, reply, data)
            elif subject.startswith(_ACK):
                self.api.acknowledge(subject, data)
                if reply:
                    self.subscriptions.route(reply, "", b"", b"")
            elif subject.startswith(PREFIX):
                self._answer(reply, self.api.answer(subject, data))
            else:
                return self.subscriptions.route(subject, reply, block, data) > 0
        except NotModelled as refusal:
            self._refuse(reply, refusal)
        return True

    def _store(self, subject: str, reply: str, block: bytes, data: bytes) -> bool:
        stream = next((each for each in self.api.streams.values() if each.takes(subject)), None)
        if stream is None:
            return False
        try:
            answer = stream.publish(subject, block, data)
        except NotModelled as refusal:
            self._refuse(reply, refusal)
        except Refused as refusal:
            self._answer(reply, {"error": refusal.error, "stream": stream.name, "seq": 0})
        else:
            if answer is not None:
                self._answer(reply, answer.document())
        return True

    def _post(self, subject: str, block: bytes, data: bytes) -> None:
        self.publish(subject, "", block, data)

    def _refuse(self, reply: str, refusal: NotModelled) -> None:
        self.not_modelled.append(str(refusal))
        self._answer(reply, {"error": refusal.error})

    def _answer(self, reply: str, document: dict[str, Any]) -> None:
        if reply:
            self.subscriptions.route(reply, "", b"", json.dumps(document).encode())
