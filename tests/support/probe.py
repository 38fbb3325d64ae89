"""Speaks JetStream on a server, real or in memory, for tests that compare the two."""

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Any

from runtime.broker.connection import ApiError, Broker
from runtime.errors import PublishFailed
from runtime.message import Message
from runtime.subjects import HOST_INBOX
from tests.support.host import eventually, fresh

MS = 1_000_000
NO_CONSUMER = 10014
"""JetStream's number of this error."""


class Probe:
    """A client with a stream of its own."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.stream = fresh("S")
        self.root = fresh("s").replace("_", "-")
        self.durable = "c"

    async def make(self, **config: Any) -> dict[str, Any]:
        """Create the stream."""
        subjects = config.pop("subjects", [f"{self.root}.>"])
        full = {"name": self.stream, "subjects": subjects, "storage": "memory", **config}
        return await self.broker.api(f"STREAM.CREATE.{self.stream}", full)

    async def consume(self, action: str = "", **config: Any) -> dict[str, Any]:
        """Create or update a consumer of the stream."""
        durable = config.pop("durable", self.durable)
        full = {"durable_name": durable, "name": durable, "ack_policy": "explicit", **config}
        full = {name: value for name, value in full.items() if value is not None}
        payload = {"stream_name": self.stream, "config": full}
        if action:
            payload["action"] = action
        return await self.broker.api(f"CONSUMER.CREATE.{self.stream}.{durable}", payload)

    async def put(self, *words: str, **options: Any) -> int:
        """Store a message for each word, on `root.word`; return the last sequence."""
        sequence = 0
        for word in words:
            ack = await self.broker.publish(f"{self.root}.{word}", word.encode(), **options)
            sequence = ack.sequence
        return sequence

    async def refused(self, *words: str, headers: Mapping[str, str] | None = None) -> str:
        """Why the stream does not store the word."""
        try:
            await self.put(*words, headers=headers)
        except PublishFailed as failure:
            return failure.reason
        raise AssertionError("the message was stored")

    async def pull(
        self, batch: int = 10, *, expires_ms: float = 100, durable: str = "", **fields: Any
    ) -> list[Message]:
        """The messages and statuses of one request, until its end."""
        arrived: asyncio.Queue[Message] = asyncio.Queue()
        inbox = f"{HOST_INBOX}.{secrets.token_hex(8)}"
        subscription = await self.broker.subscribe(inbox, arrived.put_nowait)
        body = {"batch": batch, "expires": int(expires_ms * MS), **fields}
        next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{durable or self.durable}"
        await self.broker.send(next_subject, json.dumps(body).encode(), inbox)
        found: list[Message] = []
        try:
            async with asyncio.timeout(expires_ms / 1000 + 2):
                while sum(bool(each.reply) for each in found) < batch:
                    found.append(await arrived.get())
                    status = found[-1].headers.get("Status")
                    if not found[-1].reply and status != "100":
                        break
        finally:
            await subscription.unsubscribe()
        return found

    async def words(self, batch: int = 10, **fields: Any) -> list[str]:
        """The payloads of one request's messages."""
        return [each.data.decode() for each in await self.pull(batch, **fields) if each.reply]

    async def one(self, **fields: Any) -> Message:
        """One message."""
        [message] = await self.pull(1, **fields)
        assert message.reply, message.headers
        return message

    async def settle(self, message: Message, payload: bytes = b"+ACK") -> None:
        """Settle, and wait until the server has done so."""
        await self.broker.request(message.reply, payload)

    async def info(self, durable: str = "") -> dict[str, Any]:
        """The consumer's information."""
        return await self.broker.api(f"CONSUMER.INFO.{self.stream}.{durable or self.durable}")

    async def wait_for_requests(self, count: int) -> None:
        """Return when so many pull requests wait at the consumer."""

        async def they_wait() -> bool:
            return bool((await self.info())["num_waiting"] == count)

        await eventually(they_wait, f"{count} waiting requests")

    async def wait_until_deleted(self) -> None:
        """Return when the consumer is gone."""

        async def is_gone() -> bool:
            return await self.code(f"CONSUMER.INFO.{self.stream}.{self.durable}") == NO_CONSUMER

        await eventually(is_gone, "the end of the consumer")

    async def state(self, **request: Any) -> dict[str, Any]:
        """The stream's state."""
        found = await self.broker.api(f"STREAM.INFO.{self.stream}", request or None)
        state: dict[str, Any] = found["state"]
        return state

    async def code(self, subject: str, payload: Mapping[str, Any] | None = None) -> int:
        """JetStream's number of the error."""
        try:
            await self.broker.api(subject, payload)
        except ApiError as error:
            return error.err_code
        return 0


def attempts(messages: list[Message]) -> list[int]:
    """How often each message was delivered."""
    return [int(each.reply.split(".")[-5]) for each in messages if each.reply]


def statuses(messages: list[Message]) -> list[str]:
    """The statuses of a request."""
    return [
        f"{each.headers['Status']} {each.headers.get('Description', '')}".strip()
        for each in messages
        if not each.reply
    ]
