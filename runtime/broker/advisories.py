"""Sweeper: makes dead letters of messages whose every delivery ended without a settlement.

When the process dies on every attempt, the runtime never settles the message. JetStream then
publishes an advisory, and the stream `ADVISORIES` keeps the advisory until a host has made a dead
letter of the message.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.broker import stored
from runtime.broker.connection import ApiError, Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.broker.mailbox import Mailbox
from runtime.broker.spill_queues import owner_of
from runtime.broker.stream_configs import ADVISORIES, FUNCTION_METADATA, MAILBOX, SWEEPER
from runtime.errors import RuntimeFault
from runtime.message import Message
from runtime.subjects import HOST_INBOX, is_name

log = logging.getLogger("runtime.broker")

CODE = "MAX_DELIVERIES"
_BATCH = 50
_PULL_S = 30.0
_RETRY_DELAY_S = 10.0
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Advisory:
    """A message that JetStream delivered for the last time and that was not settled."""

    stream: str
    consumer: str
    sequence: int
    deliveries: int


def parse_advisory(data: bytes) -> Advisory:
    """Parse a MAX_DELIVERIES advisory.

    Source: NATS schema `io.nats.jetstream.advisory.v1.max_deliver`.

    Raises:
        ValueError: the data is not such an advisory.
    """
    try:
        document = json.loads(data)
        advisory = Advisory(
            stream=str(document["stream"]),
            consumer=str(document["consumer"]),
            sequence=int(document["stream_seq"]),
            deliveries=int(document["deliveries"]),
        )
    except (KeyError, TypeError) as wrong:
        raise ValueError("not a MAX_DELIVERIES advisory") from wrong
    # Any client may publish on the advisories' subjects, and the names become parts of subjects.
    if not (is_name(advisory.stream) and is_name(advisory.consumer) and advisory.sequence > 0):
        raise ValueError("the advisory names no message")
    return advisory


class Sweeper:
    """Makes a dead letter of each advisory; all hosts share the work.

    Args:
        broker: the connection.
        letters: the store of dead letters.
        functions: function by stream and durable. Of any other consumer the server is asked: the
            consumer's metadata name its function, so any host can sweep for any other.
    """

    def __init__(
        self, broker: Broker, letters: DeadLetters, functions: Mapping[tuple[str, str], str]
    ) -> None:
        self._broker = broker
        self._letters = letters
        self._mailbox = Mailbox(broker)
        self._functions = functions

    async def run(self) -> None:
        """Sweep until cancelled; a failure is logged and the sweep tried again."""
        while True:
            try:
                await self.run_once(_PULL_S)
            except RuntimeFault as failure:
                log.warning("sweeping advisories failed, trying again: %s", failure)
                await asyncio.sleep(_RETRY_DELAY_S)

    async def run_once(self, wait_s: float) -> int:
        """Handle at most one batch of advisories; return how many were settled.

        Waits at most `wait_s`, and returns as soon as the server ends the pull request.

        Raises:
            Unavailable: the connection is gone.
        """
        arrived: asyncio.Queue[Message] = asyncio.Queue()
        inbox = f"{HOST_INBOX}.{secrets.token_hex(11)}"
        subscription = await self._broker.subscribe(inbox, arrived.put_nowait)
        settled = 0
        try:
            request = json.dumps({"batch": _BATCH, "expires": int(wait_s * 1e9)}).encode()
            pull = f"$JS.API.CONSUMER.MSG.NEXT.{ADVISORIES}.{SWEEPER}"
            await self._broker.send(pull, request, inbox)
            async with asyncio.timeout(wait_s + 1.0):
                for _ in range(_BATCH):
                    message = await arrived.get()
                    if not message.reply:
                        break
                    settled += await self.handle(message)
        except TimeoutError:
            log.debug("the server did not end the pull request for advisories")
        finally:
            await subscription.unsubscribe()
        return settled

    async def handle(self, message: Message) -> bool:
        """Make a dead letter of the message that the advisory names, then settle the advisory.

        Return False when that failed: the advisory is delivered again after a delay.

        Raises:
            Unavailable: the connection is gone, so nothing is settled.
        """
        try:
            advisory = parse_advisory(message.data)
        except ValueError:
            log.warning("an advisory cannot be read and is dropped")
            await self._broker.send(message.reply, b"+TERM not an advisory")
            return True
        try:
            await self._sweep(advisory)
        except Exception as failure:
            # An advisory that cannot be handled must not hold the others back.
            if isinstance(failure, RuntimeFault):
                log.warning("an advisory cannot be handled yet: %s", failure)
            else:
                log.exception("an advisory cannot be handled")
            delay = json.dumps({"delay": int(_RETRY_DELAY_S * 1e9)}).encode()
            await self._broker.send(message.reply, b"-NAK " + delay)
            return False
        await self._broker.send(message.reply, b"+ACK")
        return True

    async def _sweep(self, advisory: Advisory) -> None:
        fields = {"stream": advisory.stream, "sequence": advisory.sequence}
        function = await self._function_of(advisory)
        if function is None:
            # The consumer belongs to another application, and so do its messages.
            log.debug("an advisory names no function's consumer", extra=fields)
            return
        found = await stored.fetch(self._broker, advisory.stream, advisory.sequence)
        if found is None:
            log.warning("a message that was given up is gone from its stream", extra=fields)
            return
        found.attempt = advisory.deliveries
        message = self._mailbox.restore(found) if advisory.stream == MAILBOX else found
        await self._letters.store(
            DeadLetter(
                function=function,
                message=message,
                code=CODE,
                reason="every attempt ended without an answer: the process died or hung",
                attempts=message.attempt,
            )
        )
        log.warning("a message was given up after its last delivery", extra=fields)
        await self._release(advisory)

    async def _function_of(self, advisory: Advisory) -> str | None:
        function = await self._named_function(advisory)
        # The name becomes part of a subject, and any client could have chosen it.
        return function if function is not None and is_name(function) else None

    async def _named_function(self, advisory: Advisory) -> str | None:
        known = self._functions.get((advisory.stream, advisory.consumer))
        if known is not None:
            return known
        if advisory.stream == MAILBOX:
            return owner_of(advisory.consumer)
        try:
            found = await self._broker.api(f"CONSUMER.INFO.{advisory.stream}.{advisory.consumer}")
        except ApiError as error:
            if error.code == _NOT_FOUND:
                return None
            raise
        metadata: dict[str, str] = found["config"].get("metadata") or {}
        return metadata.get(FUNCTION_METADATA)

    async def _release(self, advisory: Advisory) -> None:
        """Delete the original from a work queue or interest stream: it would stay for ever."""
        try:
            info = await self._broker.api(f"STREAM.INFO.{advisory.stream}")
        except ApiError as error:
            if error.code == _NOT_FOUND:
                return
            raise
        retention = info["config"]["retention"]
        if retention == "limits":
            return
        if retention == "interest" and await self._others_want(advisory):
            return
        try:
            await stored.delete(self._broker, advisory.stream, advisory.sequence)
        except ApiError as error:
            # A stream that denies deletes keeps the message; its dead letter is stored, so nothing
            # is lost.
            log.warning("a message that was given up cannot be deleted: %s", error.description)

    async def _others_want(self, advisory: Advisory) -> bool:
        offset = 0
        while True:
            page = await self._broker.api(f"CONSUMER.LIST.{advisory.stream}", {"offset": offset})
            consumers: list[dict[str, Any]] = page.get("consumers") or []
            for consumer in consumers:
                behind = consumer["ack_floor"]["stream_seq"] < advisory.sequence
                if consumer["name"] != advisory.consumer and behind:
                    return True
            offset += len(consumers)
            if not consumers or offset >= page.get("total", 0):
                return False
