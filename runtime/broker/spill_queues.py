"""Spill queues: hold in the mailbox the messages that exceed a key's share of the buffer.

`mailbox.spill.{function}.{slot}.{key}` holds the messages of one key, in the order in which they
were moved. The keys of a slot share one consumer, so the number of consumers on a server is
bounded, however many keys there are. A message keeps its identity and its attempts in a spill
queue, as a parked message does. The token `{key}` is a hash, because a key can be any text.
"""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from runtime.broker import headers as names
from runtime.broker import stored
from runtime.broker.connection import ApiError, Broker
from runtime.broker.mailbox import Mailbox, identity_of, mailbox_headers
from runtime.broker.stream_configs import MAILBOX, spill_consumer_config
from runtime.context import Publication
from runtime.manifest.model import FunctionSpec
from runtime.message import Message

SLOTS = 16
CHUNK = 500
CHUNK_BYTES = 4_000_000
_NAME_BYTES = 8


@lru_cache(maxsize=4096)
def name_of(key: str) -> str:
    """A key as a token of a subject: 16 hexadecimal digits."""
    return hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"), digest_size=_NAME_BYTES
    ).hexdigest()


@dataclass(frozen=True, slots=True)
class SpilledKey:
    """The messages of one key in the spill queues.

    Attributes:
        slot: the slot of the key.
        name: the hash of the key.
        count: number of messages, delivered ones included.
    """

    slot: int
    name: str
    count: int


class SpillQueues:
    """The spill queues of one function; all its hosts share them."""

    def __init__(self, broker: Broker, function: str, spec: FunctionSpec) -> None:
        self._broker = broker
        self._function = function
        self._spec = spec
        self._mailbox = Mailbox(broker)
        self._stores_together = False

    def durable(self, slot: int) -> str:
        """The durable name of a slot's consumer."""
        return f"{self._function}~{slot}"

    async def prepare(self) -> None:
        """Create the consumers, and find out what the mailbox supports.

        Raises:
            ApiError: the mailbox stream does not exist, or the server refused a consumer.
            Unavailable: JetStream does not answer.
        """
        await asyncio.gather(*(self.ensure(slot) for slot in range(SLOTS)))
        found = await self._broker.api(f"STREAM.INFO.{MAILBOX}")
        self._stores_together = bool(found["config"].get("allow_atomic"))

    async def ensure(self, slot: int) -> None:
        """Create or update the consumer of a slot.

        Raises:
            ApiError: the server refused the consumer.
            Unavailable: JetStream does not answer.
        """
        durable = self.durable(slot)
        config = spill_consumer_config(durable, self._subject(slot), self._function, self._spec)
        payload = {"stream_name": MAILBOX, "config": config}
        await self._broker.api(f"CONSUMER.CREATE.{MAILBOX}.{durable}", payload)

    def fits(self, message: Message) -> bool:
        """Whether the server takes the message together with the headers that name its origin."""
        small = not message.headers and len(message.data) < self._broker.max_payload_bytes // 2
        return small or self._mailbox.fits(message, self._function)

    def chunk(self, moving: Iterable[tuple[str, Message]]) -> list[tuple[str, Message]]:
        """The first messages, as many as `put` stores well; one that does not fit is alone."""
        chunk: list[tuple[str, Message]] = []
        size_bytes = 0
        for name, message in moving:
            fits = self.fits(message)
            if fits or not chunk:
                chunk.append((name, message))
            size_bytes += len(message.data)
            if not fits or len(chunk) == CHUNK or size_bytes >= CHUNK_BYTES:
                break
        return chunk

    async def put(
        self, slot: int, messages: Sequence[tuple[str, Message]], *, in_order: bool
    ) -> None:
        """Append messages to a slot; a message that is stored already is not stored again.

        Args:
            slot: the slot of the key.
            messages: 1 to 1,000 pairs of the hash of a key and a message.
            in_order: whether each message must be stored after the ones before it, also after a
                failure.

        Raises:
            PublishFailed: the last messages, or all, are not stored; without `in_order` any of
                them.
        """
        publications = [
            Publication(
                subject=self._subject(slot, name),
                data=message.data,
                msg_id=f"spill-{identity_of(message, self._function)}",
                headers=mailbox_headers(message, self._function, message.attempt - 1),
            )
            for name, message in messages
        ]
        if self._stores_together and await self._broker.publish_together(publications):
            return
        if not in_order:
            await self._broker.publish_many(publications)
            return
        for publication in publications:
            await self._broker.publish_many([publication])

    async def keys(self) -> list[SpilledKey]:
        """The keys that have messages in the queues.

        Raises:
            ApiError: the mailbox is gone.
            Unavailable: JetStream does not answer.
        """
        counts: dict[str, int] = {}
        while True:
            payload = {"subjects_filter": self._subject("*"), "offset": len(counts)}
            answer = await self._broker.api(f"STREAM.INFO.{MAILBOX}", payload)
            page: dict[str, int] = answer["state"].get("subjects") or {}
            counts |= page
            if not page or len(counts) >= answer.get("total", 0):
                break
        parts = ((subject.split(".")[-2:], count) for subject, count in counts.items())
        return [SpilledKey(int(slot), name, n) for (slot, name), n in parts if slot.isdigit()]

    async def first_sequence(self, slot: int, name: str) -> int:
        """The sequence, in its original stream, of the first message of a key.

        Returns 0 when the key has no message.

        Raises:
            Unavailable: JetStream does not answer.
        """
        async for copy in stored.scan(self._broker, MAILBOX, self._subject(slot, name)):
            return names.number(copy.headers, names.SEQUENCE)
        return 0

    async def ack_pending(self, slot: int) -> int:
        """How many messages of a slot are delivered and not settled; 0 without a consumer.

        Raises:
            Unavailable: JetStream does not answer.
        """
        try:
            found = await self._broker.api(f"CONSUMER.INFO.{MAILBOX}.{self.durable(slot)}")
        except ApiError:
            return 0
        return int(found["num_ack_pending"])

    def _subject(self, slot: int | str, name: str = "*") -> str:
        return f"mailbox.spill.{self._function}.{slot}.{name}"


def owner_of(durable: str) -> str:
    """The function that a consumer of the mailbox belongs to."""
    return durable.partition("~")[0]
