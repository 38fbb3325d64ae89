"""Up to when the messages of devices are known: as far as ingest has come."""

from datetime import datetime
from typing import Any

import orjson

from functions.presence.sessions import read_time
from runtime import Context

_STREAM, _DURABLE = "TELEMETRY", "ingest-workers"
_TIMEOUT_S = 5.0


async def find_horizon(ctx: Context[Any], now: datetime) -> datetime:
    """When the oldest message was stored that ingest has not processed; `now` when there is none.

    Silence after that time proves nothing: after an outage a backlog holds the messages of devices
    that only seem silent.

    Raises:
        Unavailable: NATS is not connected.
        NoAnswer: JetStream does not answer.
    """
    consumer = await _ask(ctx, f"CONSUMER.INFO.{_STREAM}.{_DURABLE}", b"")
    if "error" in consumer:
        return now
    if not consumer.get("num_pending") and not consumer.get("num_ack_pending"):
        return now
    after = consumer["ack_floor"]["stream_seq"] + 1
    # The next one that is stored: older ones may have been removed.
    wanted = orjson.dumps({"seq": after, "next_by_subj": ">"})
    stored = (await _ask(ctx, f"STREAM.MSG.GET.{_STREAM}", wanted)).get("message")
    return min(now, read_time(stored["time"])) if stored else now


async def _ask(ctx: Context[Any], subject: str, data: bytes) -> dict[str, Any]:
    reply = await ctx.request(f"$JS.API.{subject}", data, timeout_s=_TIMEOUT_S)
    answer: dict[str, Any] = orjson.loads(reply.data)
    return answer


__all__ = ["find_horizon"]
