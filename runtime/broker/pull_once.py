"""Pulls what a durable consumer has at one moment, for a function that serves others' reading.

A `Puller` keeps requests open, because it calls a function with every message. Here the caller
wants one answer in a bounded time, and a message that nobody waits for any more would be held until
its ack wait is over. So what is there is asked for without waiting, and only a single message is
waited for. Source: NATS ADR-13 (pull requests).
"""

import asyncio
import json
import secrets
from typing import Protocol

from runtime.broker.ack_subject import set_origin
from runtime.broker.subscription import Callback, Subscription
from runtime.errors import NoAnswer, RequestFailed
from runtime.message import Message
from runtime.subjects import HOST_INBOX

ANSWER_S = 3.0
"""How long after its time a pull request's answer may come."""
_NS = 1_000_000_000
_NO_RESPONDERS = "503"


class Connection(Protocol):
    """The part of a broker's connection that a pull needs."""

    async def subscribe(self, subject: str, callback: Callback) -> Subscription:
        """Call `callback` for each message on `subject`."""

    async def send(self, subject: str, data: bytes, reply: str = "") -> None:
        """Publish without confirmation."""


class PullOnce:
    """One reader's pull requests to a durable consumer.

    Args:
        broker: the connection.
        stream: the stream.
        durable: the consumer.
    """

    def __init__(self, broker: Connection, stream: str, durable: str) -> None:
        self._broker = broker
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        self._inbox = f"{HOST_INBOX}.{secrets.token_hex(11)}"
        self._arrived: asyncio.Queue[Message] = asyncio.Queue()

    async def pull(self, messages: int, size_bytes: int, wait_s: float) -> list[Message]:
        """The next messages, at most so many and so many bytes, but one of any size.

        Returns at once what is there; when nothing is, waits up to `wait_s` for the first.

        Raises:
            NoAnswer: the consumer does not exist, or JetStream does not answer in time.
            RequestFailed: JetStream refused the request.
            Unavailable: the connection is gone.
            Unsendable: a name is not valid.
        """
        subscription = await self._broker.subscribe(self._inbox, self._arrived.put_nowait)
        try:
            found = await self._ask(messages, size_bytes, 0)
            if not found and wait_s > 0:
                found = await self._ask(1, 0, wait_s)
                if found and messages > 1:
                    left_bytes = size_bytes - len(found[0].data)
                    found += await self._ask(messages - 1, left_bytes, 0) if left_bytes > 0 else []
        finally:
            await subscription.unsubscribe()
        return found

    async def _ask(self, messages: int, size_bytes: int, wait_s: float) -> list[Message]:
        body: dict[str, int | bool] = {"batch": messages}
        if wait_s:
            body["expires"] = int(wait_s * _NS)
        else:
            body["no_wait"] = True
        if size_bytes:
            body["max_bytes"] = size_bytes
        await self._broker.send(self._subject, json.dumps(body).encode(), self._inbox)
        found: list[Message] = []
        while len(found) < messages:
            message = await self._next(wait_s + ANSWER_S)
            if not message.reply:
                if not found and size_bytes and _is_too_large(message):
                    return await self._ask(1, 0, 0)
                self._check_end(message)
                break
            set_origin(message)
            found.append(message)
        return found

    async def _next(self, limit_s: float) -> Message:
        try:
            async with asyncio.timeout(limit_s):
                return await self._arrived.get()
        except TimeoutError:
            raise NoAnswer(self._subject, "timeout") from None

    def _check_end(self, status: Message) -> None:
        """Accept the normal end of a pull request.

        Raises:
            NoAnswer, RequestFailed: it ended for another reason.
        """
        code, text = status.headers.get("Status", ""), status.headers.get("Description", "")
        if code == _NO_RESPONDERS:
            raise NoAnswer(self._subject, "no responders")
        lowered = text.lower()
        if code in {"404", "408"} or "batch completed" in lowered or _is_too_large(status):
            return
        raise RequestFailed(self._subject, int(code) if code.isdigit() else 500, text.strip())


def _is_too_large(status: Message) -> bool:
    return "message size" in status.headers.get("Description", "").lower()
