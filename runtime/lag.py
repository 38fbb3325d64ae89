"""Polls each consumer's pending and unacknowledged counts for the metrics."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from runtime.broker.connection import ApiError, Broker
from runtime.errors import Unavailable
from runtime.observe.metrics import FunctionMetrics
from runtime.supervised_task import SupervisedTask

EVERY_S = 5.0


class LagWatch:
    """Updates `consumer_pending` and related values in the functions' metrics.

    Args:
        broker: the connection.
        on_config: called with stream, durable and configuration of each polled consumer, which the
            same answer contains.
    """

    def __init__(
        self,
        broker: Broker,
        on_config: Callable[[str, str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._broker = broker
        self._on_config = on_config
        self._watched: dict[tuple[str, str], FunctionMetrics] = {}
        self._task = SupervisedTask(self._run, "lag watch")

    def add(self, stream: str, durable: str, metrics: FunctionMetrics) -> Callable[[], None]:
        """Add a consumer; the result takes it out again."""
        key = (stream, durable)
        self._watched[key] = metrics

        def remove() -> None:
            self._watched.pop(key, None)
            metrics.consumer_pending = None
            metrics.consumer_ack_pending = metrics.consumer_redelivered = None

        return remove

    def durables_of(self, stream: str) -> list[str]:
        """The polled consumers of a stream."""
        return [durable for name, durable in self._watched if name == stream]

    def start(self) -> None:
        """Start polling."""
        self._task.start()

    async def stop(self) -> None:
        """Stop polling."""
        await self._task.stop()

    async def _run(self) -> None:
        while True:
            for (stream, durable), metrics in list(self._watched.items()):
                await self._update(stream, durable, metrics)
            await asyncio.sleep(EVERY_S)

    async def _update(self, stream: str, durable: str, metrics: FunctionMetrics) -> None:
        try:
            found = await self._broker.api(f"CONSUMER.INFO.{stream}.{durable}")
        except (Unavailable, ApiError):
            # Unknown, not the old figure, which would look as if all were well.
            metrics.consumer_pending = None
            metrics.consumer_ack_pending = metrics.consumer_redelivered = None
            return
        metrics.consumer_pending = found["num_pending"]
        metrics.consumer_ack_pending = found["num_ack_pending"]
        metrics.consumer_redelivered = found["num_redelivered"]
        if self._on_config is not None:
            self._on_config(stream, durable, found["config"])
