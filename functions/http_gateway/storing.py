"""Storing what came in through a door, and saying so only when it is stored."""

import re
from collections.abc import Mapping

from starlette.requests import Request

from functions.http_gateway.problems import ProblemError
from runtime import Context, PubAck, Unavailable

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


async def store(
    ctx: Context, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str]
) -> PubAck:
    """JetStream's confirmation.

    Raises:
        ProblemError: 503, it did not come. The sender may repeat the message under the same id.
    """
    try:
        return await ctx.publish(subject, data, msg_id=msg_id, headers=headers)
    except Unavailable as away:
        ctx.log.warning("A message was not stored; its sender was told 503.", reason=away.reason)
        raise ProblemError(
            503, "NOT_STORED", "The message could not be stored; send it again."
        ) from away


def trace_headers(request: Request) -> dict[str, str]:
    """What follows a request through NATS: its id, and the W3C trace context if it brought one."""
    headers = {"X-Request-Id": request.state.request_id}
    traceparent = request.headers.get("traceparent", "")
    if _TRACEPARENT.fullmatch(traceparent):
        headers["traceparent"] = traceparent
    return headers
