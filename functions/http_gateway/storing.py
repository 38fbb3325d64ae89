"""Stores received messages in JetStream, and returns only when they are stored."""

import asyncio
import re
from collections.abc import Mapping

from functions.domain.broker_messages import EXCEEDS_STREAM
from functions.http_gateway.problems import ProblemError
from functions.http_gateway.requests import Request
from runtime import Context, PubAck, TooLarge, Unavailable, Unsendable

_TELL_EVERY_S = 10.0
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Storage:
    """Stores messages of device ingest and the EMQX bridge; logs a failure at most every 10 s."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._refused = 0
        self._told_at_s = self._unsendable_at_s = float("-inf")

    async def store(
        self, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str]
    ) -> PubAck:
        """Publish a message and return JetStream's confirmation.

        Raises:
            ProblemError: 503 when there was no confirmation; the sender may repeat the message
                under the same id. 413 or 400 when NATS or the stream can never accept the
                message.
        """
        try:
            return await self._ctx.publish(subject, data, msg_id=msg_id, headers=headers)
        except Unavailable as away:
            if away.reason == EXCEEDS_STREAM:
                raise ProblemError(
                    413, "MESSAGE_TOO_LARGE", "The stream accepts no message that large."
                ) from away
            self._tell(away.reason)
            raise ProblemError(
                503, "NOT_STORED", "The message could not be stored; send it again."
            ) from away
        except Unsendable as refusal:
            self._tell_unsendable(refusal.reason)
            raise explain_refusal(refusal) from refusal

    def _tell_unsendable(self, reason: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._unsendable_at_s >= _TELL_EVERY_S:
            self._unsendable_at_s = now_s
            self._ctx.log.warning("A message is not stored.", reason=reason)

    def _tell(self, reason: str) -> None:
        self._refused += 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_at_s < _TELL_EVERY_S:
            return
        self._ctx.log.warning(
            "Messages are not stored; their senders are answered 503.",
            messages=self._refused,
            reason=reason,
        )
        self._refused, self._told_at_s = 0, now_s


def explain_refusal(refusal: Unsendable) -> ProblemError:
    """The problem details for a message or request that can never be sent."""
    if isinstance(refusal, TooLarge):
        return ProblemError(413, "MESSAGE_TOO_LARGE", "NATS accepts no message that large.")
    return ProblemError(400, "NOT_SENDABLE", "NATS accepts no message of this form.")


def trace_headers(request: Request) -> dict[str, str]:
    """Headers for NATS messages of a request: its id, and its W3C trace context if it has one."""
    headers = {"X-Request-Id": request.id}
    traceparent = request.headers.get("traceparent", "")
    if _TRACEPARENT.fullmatch(traceparent):
        headers["traceparent"] = traceparent
    return headers
