"""Stores batches of messages in JetStream, and returns only when all are stored."""

import asyncio
from collections.abc import Sequence
from typing import Any

from functions.domain.broker_messages import (
    EXCEEDS_STREAM,
    LEAST_LIMIT_BYTES,
    Publish,
    make_message,
)
from runtime import (
    Context,
    PubAck,
    Publication,
    PublishFailed,
    TooLarge,
    Unavailable,
    Unsendable,
)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_TELL_EVERY_S = 10.0
_HEADERS_BYTES = 1024


class Store:
    """Stores for all sessions of a bridge.

    Args:
        ctx: of the function.
        limit_bytes: a longer message is cut.

    Attributes:
        log: the function's.
    """

    def __init__(self, ctx: Context, limit_bytes: int) -> None:
        self._ctx = ctx
        self._limit_bytes = limit_bytes
        self.log: Any = ctx.log
        self._told_at_s = float("-inf")
        # By the first token of the subject, for streams that take less than others.
        self._limits_bytes: dict[str, int] = {}

    async def store(self, messages: Sequence[Publish]) -> None:
        """Store the messages in this order; returns when JetStream has confirmed all of them.

        While NATS or a stream is away it tries again, for as long as it takes: what is not
        confirmed is not acknowledged, so the broker keeps it and in the end sends no more.
        """
        left = list(messages)
        pause_s = _FIRST_PAUSE_S
        while left:
            made = [self._made(each) for each in left]
            try:
                await self._ctx.publish_many(made)
            except PublishFailed as failure:
                self._lower_limits(made, failure)
                left = _unconfirmed(left, failure)
                self._tell(failure.reason, left)
            except Unavailable as away:
                self._tell(away.reason, left)
            except Unsendable:
                # One of them; those before it may be stored, under the same ids.
                left = await self._store_singly(left)
            else:
                return
            if left:
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _store_singly(self, messages: Sequence[Publish]) -> list[Publish]:
        """Store one by one; returns those that are left when NATS is away."""
        for number, each in enumerate(messages):
            try:
                await self._store_one(each)
            except Unavailable as away:
                self._tell(away.reason, messages[number:])
                return list(messages[number:])
        return []

    async def _store_one(self, publish: Publish) -> None:
        made = self._made(publish)
        try:
            await self._ctx.publish(made.subject, made.data, msg_id=made.msg_id)
        except TooLarge as refusal:
            # The server takes less than `max_publish_bytes`: what it takes goes into quarantine.
            self._limit_bytes = max(LEAST_LIMIT_BYTES, refusal.limit_bytes - _HEADERS_BYTES)
            made = self._made(publish)
            await self._ctx.publish(made.subject, made.data, msg_id=made.msg_id)

    def _made(self, publish: Publish) -> Publication:
        subject, data = make_message(publish, limit_bytes=self._limit_bytes)
        limit_bytes = self._limits_bytes.get(subject.partition(".")[0])
        if limit_bytes is not None and len(data) > limit_bytes:
            subject, data = make_message(publish, limit_bytes=limit_bytes)
        return Publication(subject, data, publish.message_id)

    def _lower_limits(self, made: Sequence[Publication], failure: PublishFailed) -> None:
        """Keep less of messages for which a stream is too small; it does not say how much less.

        Otherwise one such message would hold up all others for ever.
        """
        for each, outcome in zip(made, failure.outcomes, strict=False):
            if isinstance(outcome, PublishFailed) and outcome.reason == EXCEEDS_STREAM:
                family = each.subject.partition(".")[0]
                known = self._limits_bytes.get(family, self._limit_bytes)
                lower = max(LEAST_LIMIT_BYTES, min(known, len(each.data) * 3 // 4))
                self._limits_bytes[family] = lower

    def _tell(self, reason: str, left: Sequence[Publish]) -> None:
        now_s = asyncio.get_running_loop().time()
        if not left or now_s - self._told_at_s < _TELL_EVERY_S:
            return
        self._told_at_s = now_s
        self.log.warning(
            "Messages are not stored; the MQTT broker keeps them.",
            reason=reason,
            messages=len(left),
            subject=self._made(left[0]).subject,
        )


def _unconfirmed(sent: Sequence[Publish], failure: PublishFailed) -> list[Publish]:
    if len(failure.outcomes) != len(sent):
        return list(sent)
    outcomes = zip(sent, failure.outcomes, strict=True)
    return [each for each, outcome in outcomes if not isinstance(outcome, PubAck)]


__all__ = ["Store"]
