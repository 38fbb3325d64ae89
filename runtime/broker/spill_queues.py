"""Spill queues: what one key has too much of, moved out of everybody's way into the mailbox.

`mailbox.overflow.{function}.{name}` holds the messages of one key, in the order in which they were
set aside, for a consumer of their own. A message keeps its identity and its attempts there, as one
that is parked does. The name is a hash: keys are made of what devices send, and may be anything.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from runtime.broker import headers as names
from runtime.broker import stored
from runtime.broker.connection import ApiError, Broker
from runtime.broker.mailbox import Mailbox, identity_of, mailbox_headers
from runtime.broker.stream_configs import MAILBOX, spill_consumer_config
from runtime.context import Publication
from runtime.manifest.model import FunctionSpec
from runtime.message import Message

_NAME_BYTES = 8


@lru_cache(maxsize=4096)
def name_of(key: str) -> str:
    """The name of a key's overflow queue: 16 hexadecimal digits."""
    return hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"), digest_size=_NAME_BYTES
    ).hexdigest()


class SpillQueues:
    """The overflow queues of one function; all its hosts share them."""

    def __init__(self, broker: Broker, function: str, spec: FunctionSpec) -> None:
        self._broker = broker
        self._function = function
        self._spec = spec
        self._mailbox = Mailbox(broker)
        self._stores_together = False

    def durable(self, name: str) -> str:
        """The consumer of a queue."""
        return f"{self._function}~{name}"

    async def ensure(self, name: str) -> None:
        """Make sure that a queue has its consumer.

        Raises:
            ApiError: the server refused it.
            Unavailable: JetStream does not answer.
        """
        durable = self.durable(name)
        config = spill_consumer_config(durable, self._subject(name), self._function, self._spec)
        payload = {"stream_name": MAILBOX, "config": config}
        await self._broker.api(f"CONSUMER.CREATE.{MAILBOX}.{durable}", payload)

    async def look(self) -> None:
        """Learn what the mailbox can do.

        Raises:
            ApiError: there is none.
            Unavailable: JetStream does not answer.
        """
        found = await self._broker.api(f"STREAM.INFO.{MAILBOX}")
        self._stores_together = bool(found["config"].get("allow_atomic"))

    def fits(self, message: Message) -> bool:
        """Whether the server takes the message together with the headers that tell its origin."""
        small = not message.headers and len(message.data) < self._broker.max_payload_bytes // 2
        return small or self._mailbox.fits(message, self._function)

    async def put(self, name: str, messages: Sequence[Message], *, in_order: bool) -> None:
        """Store messages at the end of a queue; one that is there already is not stored again.

        Args:
            name: the queue's.
            messages: at least one, at most 1,000.
            in_order: whether, whatever happens, each must be stored after those before it.

        Raises:
            PublishFailed: the last ones, or all, are not stored; without order any of them.
        """
        publications = self._publications(name, messages)
        if self._stores_together and await self._broker.publish_together(publications):
            return
        if not in_order:
            await self._broker.publish_many(publications)
            return
        for publication in publications:
            await self._broker.publish_many([publication])

    def _publications(self, name: str, messages: Sequence[Message]) -> list[Publication]:
        subject = self._subject(name)
        return [
            Publication(
                subject=subject,
                data=message.data,
                msg_id=f"overflow-{identity_of(message, self._function)}",
                headers=mailbox_headers(message, self._function, message.attempt - 1),
            )
            for message in messages
        ]

    async def counts(self) -> dict[str, int]:
        """How many messages each queue holds that holds any, delivered ones included.

        Raises:
            ApiError: the mailbox is gone.
            Unavailable: JetStream does not answer.
        """
        found: dict[str, int] = {}
        while True:
            payload = {"subjects_filter": self._subject("*"), "offset": len(found)}
            answer = await self._broker.api(f"STREAM.INFO.{MAILBOX}", payload)
            page: dict[str, int] = answer["state"].get("subjects") or {}
            found |= {subject.rsplit(".", 1)[1]: count for subject, count in page.items()}
            if not page or len(found) >= answer.get("total", 0):
                return found

    async def first_sequence(self, name: str) -> int:
        """The sequence that the first message of a queue has in the stream it came from.

        0 when there is none.

        Raises:
            Unavailable: JetStream does not answer.
        """
        async for copy in stored.scan(self._broker, MAILBOX, self._subject(name)):
            return names.number(copy.headers, names.SEQUENCE)
        return 0

    async def ack_pending(self, name: str) -> int:
        """How many messages of a queue are delivered and not settled; 0 without a consumer.

        Raises:
            Unavailable: JetStream does not answer.
        """
        try:
            found = await self._broker.api(f"CONSUMER.INFO.{MAILBOX}.{self.durable(name)}")
        except ApiError:
            return 0
        return int(found["num_ack_pending"])

    def _subject(self, name: str) -> str:
        return f"mailbox.overflow.{self._function}.{name}"


def owner_of(durable: str) -> str:
    """The function that a consumer of the mailbox belongs to."""
    return durable.partition("~")[0]
