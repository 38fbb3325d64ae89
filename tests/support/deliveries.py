"""Pulls deliveries of a durable consumer, one request at a time."""

import asyncio
import json
import secrets

from runtime.broker.connection import Broker
from runtime.message import Message

_TOKENS_V1 = 9


async def pull(
    broker: Broker, stream: str, durable: str, count: int = 1, *, wait_s: float = 5.0
) -> list[Message]:
    """Up to `count` messages; fewer when no more arrived within `wait_s`."""
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    inbox = f"_INBOX.{secrets.token_hex(11)}"
    subscription = await broker.subscribe(inbox, arrived.put_nowait)
    request = json.dumps({"batch": count, "expires": int(wait_s * 1e9)}).encode()
    await broker.send(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", request, inbox)
    messages: list[Message] = []
    while len(messages) < count:
        message = await arrived.get()
        if not message.reply:
            break
        messages.append(_delivery(message))
    await subscription.unsubscribe()
    return messages


async def pull_nothing(broker: Broker, stream: str, durable: str) -> None:
    """Keep a pull request open for a moment: the server sends some advisories only then."""
    assert await pull(broker, stream, durable, wait_s=1.5) == []


def _delivery(message: Message) -> Message:
    tokens = message.reply.split(".")
    first = 2 if len(tokens) == _TOKENS_V1 else 4
    message.stream = tokens[first]
    message.attempt = int(tokens[first + 2])
    message.sequence = int(tokens[first + 3])
    message.stored_at_ns = int(tokens[first + 5])
    return message
