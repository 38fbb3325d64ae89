"""Finds out up to when the answers of devices have been handled, so that none comes too late here.

An answer waits in its stream while the hosts or PostgreSQL are away. A command whose time was up
meanwhile may have been answered in time.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from runtime import Context, NoAnswer, RequestFailed, Unavailable

PATIENCE_S = 120.0
"""While none of the answers is settled for so long, they are not waited for any more."""


class Waiting(NamedTuple):
    """The oldest answer that is not settled.

    Attributes:
        floor: the stream sequence up to which all answers are settled; -1 where nobody knows.
        stored_at: when it was stored.
    """

    floor: int
    stored_at: datetime


UNKNOWN = Waiting(-1, datetime.fromtimestamp(0, UTC))


class AnswerBacklog:
    """Looks at the consumer of the function that applies the answers.

    Args:
        stream: of the answers.
        durable: the function's consumer.
        now_s: a monotonic clock.
    """

    def __init__(
        self, stream: str, durable: str, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._durable = durable
        self._now_s = now_s
        self._floor: int | None = None
        self._since_s = 0.0

    async def handled_until(self, ctx: Context[Any]) -> datetime | None:
        """The time before which all answers were stored that are handled by now; None: all are.

        Also None when nothing is settled for `PATIENCE_S`: a function that is paused, or a message
        that fails again and again, must not keep commands open.
        """
        return self.judge(await self._find_oldest(ctx))

    def judge(self, waiting: Waiting | None) -> datetime | None:
        """The time for what is waiting; remembers since when nothing was settled."""
        if waiting is None:
            self._floor = None
            return None
        now_s = self._now_s()
        if waiting.floor != self._floor:
            self._floor, self._since_s = waiting.floor, now_s
        return waiting.stored_at if now_s - self._since_s < PATIENCE_S else None

    async def _find_oldest(self, ctx: Context[Any]) -> Waiting | None:
        place = f"{self._stream}.{self._durable}"
        try:
            found = await _ask(ctx, f"CONSUMER.INFO.{place}", {})
            # Without a consumer nobody applies answers.
            if "error" in found or not (found["num_pending"] or found["num_ack_pending"]):
                return None
            floor: int = found["ack_floor"]["stream_seq"]
            wanted = {"seq": floor + 1, "next_by_subj": ">"}
            found = await _ask(ctx, f"STREAM.MSG.GET.{self._stream}", wanted)
        except (RequestFailed, NoAnswer, Unavailable):
            return UNKNOWN
        if "error" in found:
            return None
        return Waiting(floor, datetime.fromisoformat(found["message"]["time"]))


async def _ask(ctx: Context[Any], call: str, wanted: dict[str, Any]) -> dict[str, Any]:
    answer = await ctx.request(f"$JS.API.{call}", orjson.dumps(wanted) if wanted else b"")
    content: dict[str, Any] = orjson.loads(answer.data)
    return content


__all__ = ["PATIENCE_S", "UNKNOWN", "AnswerBacklog", "Waiting"]
