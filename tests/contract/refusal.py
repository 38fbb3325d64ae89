"""Makes a stream of the runtime refuse messages, and accept them again."""

from typing import Any, Literal

from runtime.broker.connection import Broker
from runtime.broker.streams import ensure_runtime_streams

Way = Literal["deleted", "full", "narrow"]

_BEGIN: dict[Way, dict[str, Any]] = {
    "full": {"max_msgs": 1, "discard": "new"},
    "narrow": {"max_msg_size": 1},
}
_END: dict[Way, dict[str, Any]] = {
    "full": {"max_msgs": -1, "discard": "old"},
    "narrow": {"max_msg_size": -1},
}
_FILLER = "dead_letters.filler"


class Refusal:
    """A stream that refuses every message from `begin` to `end`.

    The mailbox cannot be full: a stream with message schedules drops its oldest message instead.
    """

    def __init__(self, broker: Broker, stream: str, way: Way) -> None:
        self._broker = broker
        self._stream = stream
        self._way = way

    async def begin(self) -> None:
        if self._way == "deleted":
            await self._broker.api(f"STREAM.DELETE.{self._stream}")
            return
        if self._way == "full":
            await self._broker.api(f"STREAM.PURGE.{self._stream}")
            await self._broker.publish(_FILLER, b"")
        await self._update(_BEGIN[self._way])

    async def end(self) -> None:
        """Have the stream accept messages again, if it does not."""
        if self._way == "deleted":
            await ensure_runtime_streams(self._broker)
            return
        if self._way == "full":
            await self._broker.api(f"STREAM.PURGE.{self._stream}", {"filter": _FILLER})
        await self._update(_END[self._way])

    async def _update(self, fields: dict[str, Any]) -> None:
        found = await self._broker.api(f"STREAM.INFO.{self._stream}")
        await self._broker.api(f"STREAM.UPDATE.{self._stream}", {**found["config"], **fields})
