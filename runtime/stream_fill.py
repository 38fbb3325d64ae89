"""Polls how full the streams are that refuse messages when full."""

import asyncio

from runtime.broker.connection import ApiError, Broker
from runtime.broker.mailbox import Mailbox
from runtime.broker.stream_configs import DEAD_LETTERS, MAILBOX, MAILBOX_BYTES
from runtime.errors import Unavailable
from runtime.manifest import Manifest
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics, StreamBytes
from runtime.supervised_task import SupervisedTask

log = get_logger("runtime.streams")

EVERY_S = 10.0
NEARLY_FULL_PERCENT = 80


class StreamFill:
    """Polls streams every few seconds; reports nearly full ones in log, metrics and readiness.

    The mailbox's limit is enforced by the hosts: when it is reached, no message is parked, and
    messages wait in their own streams.

    Args:
        broker: the connection.
        metrics: gets `stream_fills`.
        mailbox: its `is_full` is set.
        manifest: its streams are polled if they refuse messages when full, and so are the host's
            own.
    """

    def __init__(
        self, broker: Broker, metrics: Metrics, mailbox: Mailbox, manifest: Manifest
    ) -> None:
        self._mailbox = mailbox
        self._broker = broker
        self._metrics = metrics
        self._streams: list[str] = []
        self._told: set[str] = set()
        self.follow(manifest)
        self._task = SupervisedTask(self._run, "stream fill")

    def follow(self, manifest: Manifest) -> None:
        """Poll the streams of another manifest from now on."""
        refusing = (name for name, spec in manifest.streams.items() if spec.discard == "new")
        before, self._streams = self._streams, sorted({MAILBOX, DEAD_LETTERS, *refusing})
        for stream in set(before) - set(self._streams):
            self._metrics.stream_fills.pop(stream, None)
            self._told.discard(stream)

    def start(self) -> None:
        """Start polling."""
        self._task.start()

    async def stop(self) -> None:
        """Stop polling."""
        await self._task.stop()

    async def check(self) -> str | None:
        """Probe: no stream was nearly full at the last poll."""
        full = [
            f"{name} {fill.percent}%"
            for name, fill in self._metrics.stream_fills.items()
            if fill.percent >= NEARLY_FULL_PERCENT
        ]
        return f"NEARLY_FULL {', '.join(full)}" if full else None

    async def _run(self) -> None:
        while True:
            for stream in self._streams:
                await self._ask(stream)
            await asyncio.sleep(EVERY_S)

    async def _ask(self, stream: str) -> None:
        try:
            found = await self._broker.api(f"STREAM.INFO.{stream}")
        except (Unavailable, ApiError):
            # Unknown, which is not the same as empty.
            self._metrics.stream_fills.pop(stream, None)
            return
        limit = max(0, found["config"].get("max_bytes") or 0)
        if stream == MAILBOX:
            limit = limit or MAILBOX_BYTES
            self._mailbox.is_full = found["state"]["bytes"] >= limit
        if limit:
            self._tell(stream, StreamBytes(found["state"]["bytes"], limit))
        else:
            self._metrics.stream_fills.pop(stream, None)

    def _tell(self, stream: str, fill: StreamBytes) -> None:
        self._metrics.stream_fills[stream] = fill
        if fill.percent >= NEARLY_FULL_PERCENT and stream not in self._told:
            self._told.add(stream)
            log.warning(
                "A stream is nearly full; make room, or raise its limit",
                stream=stream,
                percent=fill.percent,
                limit_bytes=fill.limit,
            )
        elif fill.percent < NEARLY_FULL_PERCENT and stream in self._told:
            self._told.discard(stream)
            log.info("A stream has room again", stream=stream, percent=fill.percent)
