"""Bounds what nats-server keeps of retained MQTT messages, which it does not bound itself.

nats-server makes the stream when the first MQTT client connects, and keeps limits that are changed
later (2.15.1). A retained message beyond them still goes its way; it is only not kept, or the
oldest ones go.
"""

import asyncio
from typing import Any

import orjson

from runtime import Context

STREAM = "$MQTT_rmsgs"
_FIRST_LOOKS_S = 2.0
_REFUSED = "What nats-server keeps of retained MQTT messages has no bound"


class RetainedBounds:
    """Sets the limits of the stream, and sets them again when they are changed.

    Args:
        ctx: of the function.
        max_bytes: of all retained messages together; the oldest ones go.
        max_message_bytes: a larger message is not kept.
        every_s: seconds between two looks.
    """

    def __init__(
        self, ctx: Context[Any], max_bytes: int, max_message_bytes: int, every_s: float
    ) -> None:
        self._ctx = ctx
        self._limits = {
            "max_bytes": max_bytes,
            "max_msg_size": max_message_bytes,
            "discard": "old",
        }
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None
        self._is_told = False

    def start(self) -> None:
        """Start to look."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                exists = await self._apply()
            except Exception as failure:  # noqa: BLE001 - of whatever kind, the next look comes
                exists = True
                self._tell(f"{type(failure).__name__}: {failure}")
            await asyncio.sleep(self._every_s if exists else min(self._every_s, _FIRST_LOOKS_S))

    async def _apply(self) -> bool:
        """Set the limits where they differ; False while there is no such stream."""
        found = await self._ask("INFO", b"")
        if "config" not in found:
            return False
        config: dict[str, Any] = found["config"]
        if config | self._limits != config:
            changed = await self._ask("UPDATE", orjson.dumps(config | self._limits))
            if "error" in changed:
                self._tell(str(changed["error"].get("description")))
            else:
                self._ctx.log.info("Retained MQTT messages have bounds now", **self._limits)
        return True

    async def _ask(self, operation: str, request: bytes) -> dict[str, Any]:
        reply = await self._ctx.request(f"$JS.API.STREAM.{operation}.{STREAM}", request)
        answer: dict[str, Any] = orjson.loads(reply.data)
        return answer

    def _tell(self, reason: str) -> None:
        if not self._is_told:
            self._is_told = True
            self._ctx.log.warning(_REFUSED, reason=reason)


__all__ = ["STREAM", "RetainedBounds"]
