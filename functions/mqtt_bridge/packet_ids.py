"""Message ids that are the same when the broker sends a message again. Pure.

MQTT has no message id: a packet id names a message of one session, and is used again after 65,535
others at the latest. The bridge therefore renews its subscription identifier, which the broker
keeps with each message that it holds for the session, before packet ids can repeat under it.
Session, subscription identifier and packet id together name one message, also for the process that
comes after a crash.

An id that two messages share would lose one of them, and an id that a redelivery does not share
only stores it twice. So where packet ids do repeat (a long backlog has one identifier, and some
brokers use small numbers again), the ids are new ones.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

RENEW_AFTER = 30_000
"""Messages under one subscription identifier: less than half of the packet ids, as messages that
are on their way still have the old identifier."""

_IDENTIFIERS = 268_435_455
_PACKET_IDS = 65_536
_REMEMBERED = 2


class Delivery(NamedTuple):
    """What the broker says about a message that it delivers with QoS 1.

    Attributes:
        packet_id: its packet id.
        is_repeated: the DUP flag: the message may have been delivered before.
        identifiers: its subscription identifiers; empty when the broker knows none.
    """

    packet_id: int
    is_repeated: bool
    identifiers: Sequence[int]


class PacketIds:
    """The ids of one session's messages.

    Args:
        session: the session's client id.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._nonce = secrets.token_hex(8)
        self._count = 0
        self._seen = 0
        self._repeating: set[int] = set()
        # By identifiers that this process has issued: which packet ids were seen under them.
        self._used: dict[int, bytearray] = {}
        self._open: dict[int, tuple[bytes, str]] = {}
        self._last = secrets.randbelow(_IDENTIFIERS)

    @property
    def must_renew(self) -> bool:
        """Whether it is time to subscribe with a new identifier."""
        return self._seen >= RENEW_AFTER or self._last in self._repeating

    def issue_identifier(self) -> int:
        """A new subscription identifier, for the messages to come."""
        self._last = self._last % _IDENTIFIERS + 1
        self._used[self._last] = bytearray(_PACKET_IDS)
        while len(self._used) > _REMEMBERED:
            del self._used[next(iter(self._used))]
        self._repeating &= self._used.keys()
        self._seen = 0
        return self._last

    def forget_session(self) -> None:
        """The broker has a new session: its packet ids begin again, and nothing is sent again."""
        self._used.clear()
        self._open.clear()

    def id_of(self, delivery: Delivery, topic: str, payload: bytes) -> str:
        """The message id of a delivery; `settle` forgets it."""
        packet_id = delivery.packet_id
        digest = hashlib.blake2b(
            payload, digest_size=12, key=hashlib.blake2b(topic.encode()).digest()
        ).digest()
        known = self._open.get(packet_id)
        if delivery.is_repeated and known is not None and known[0] == digest:
            return known[1]
        if self._is_single(delivery):
            identifier = delivery.identifiers[0]
            found = f"mqtt/{self._session}/{identifier}/{packet_id}/{digest.hex()}"
        else:
            found = self.fresh_id()
        self._open[packet_id] = (digest, found)
        return found

    def fresh_id(self) -> str:
        """An id that no message has had."""
        self._count += 1
        return f"mqtt/{self._session}/{self._nonce}/{self._count}"

    def settle(self, packet_id: int) -> None:
        """The message is acknowledged: the packet id may name another one now."""
        self._open.pop(packet_id, None)

    def _is_single(self, delivery: Delivery) -> bool:
        """Whether identifier and packet id name this message and no other."""
        if len(delivery.identifiers) != 1:
            return False
        identifier, packet_id = delivery.identifiers[0], delivery.packet_id
        used = self._used.get(identifier)
        if used is None:
            # Of a process that has ended. It made the id of what it was sent first, and none for
            # what was not sent to it.
            return delivery.is_repeated
        if used[packet_id] and not delivery.is_repeated:
            self._repeating.add(identifier)
        if identifier in self._repeating:
            return False
        self._seen += not used[packet_id]
        used[packet_id] = 1
        return True


__all__ = ["RENEW_AFTER", "Delivery", "PacketIds"]
