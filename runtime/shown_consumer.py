"""Shows a function that consumes a stream as a virtual endpoint of a micro service."""

from collections.abc import Callable, Mapping, Sequence

from runtime.broker.drift import Change
from runtime.broker.micro import EndpointStats, MicroEndpoint
from runtime.broker.pull_source import PullSource
from runtime.deployments.function_status import FunctionStatus
from runtime.drift_watch import describe_drift
from runtime.observe.metrics import FAILED_OUTCOMES, FunctionMetrics
from runtime.observe.recent_load import Totals


class ShownConsumer:
    """The metadata and the statistics of one function.

    Args:
        status: its version and its last reload.
        source: the stream and the consumer of its messages.
        metrics: its counters.
        leads: for an ordered function, whether this process is the leader.
        drift: returns how the server's stream and consumers differ from the manifest now.

    Attributes:
        place: the stream and the consumer.
    """

    def __init__(
        self,
        status: FunctionStatus,
        source: PullSource,
        metrics: FunctionMetrics,
        *,
        leads: Callable[[], bool] | None,
        drift: Callable[[], Sequence[Change]],
    ) -> None:
        self.place = {"stream": source.stream, "durable": source.durable}
        self._status = status
        self._subject = source.subjects[0]
        self._metrics = metrics
        self._leads = leads
        self._drift = drift
        self._counters = EndpointStats()

    def totals(self) -> Totals:
        """The counters of its load."""
        messages = self._metrics.messages
        errors = sum(messages[outcome] for outcome in FAILED_OUTCOMES)
        return Totals(sum(messages.values()), errors, self._metrics.calls_by_bucket)

    def endpoint(self, recent: Callable[[], Mapping[str, object]]) -> MicroEndpoint:
        """The virtual endpoint.

        Args:
            recent: returns the load of the last seconds.
        """
        return MicroEndpoint(
            name=self._status.function.name,
            subject=self._subject,
            queue_group=None,
            metadata=self._metadata,
            stats=lambda: {**self._stats(), "recent": recent()},
            counters=self._counters,
        )

    def _stats(self) -> dict[str, object]:
        metrics, counters, now = self._metrics, self._counters, self.totals()
        counters.num_requests, counters.num_errors = now.messages, now.errors
        counters.processing_ns = int(metrics.seconds_sum * 1_000_000_000)
        counters.last_error = next(reversed(metrics.dead_letters), "")
        changes = self._drift()
        return {
            **self._status.as_metadata(),
            **self.place,
            "kind": "schedule" if self._status.function.spec.schedule else "consumer",
            "outcomes": dict(metrics.messages),
            "dead_letters": dict(metrics.dead_letters),
            "in_flight": metrics.in_flight,
            "pending": metrics.consumer_pending,
            "ack_pending": metrics.consumer_ack_pending,
            "redelivered": metrics.consumer_redelivered,
            "drift": [_changed(change) for change in changes],
            "drifted": describe_drift(changes),
        }

    def _metadata(self) -> Mapping[str, object]:
        metrics, drifted = self._metrics, describe_drift(self._drift())
        return {
            **self.place,
            **self._status.as_metadata(),
            **self._status.schemas(),
            "lag": metrics.consumer_pending,
            "ack_pending": metrics.consumer_ack_pending,
            "redelivered": metrics.consumer_redelivered,
            "dead_letters": sum(metrics.dead_letters.values()),
            **({} if self._leads is None else {"leads": str(self._leads()).lower()}),
            **({"drift": drifted} if drifted else {}),
        }


def _changed(change: Change) -> dict[str, object]:
    return {
        "object": change.object,
        "field": change.field,
        "server": change.found,
        "manifest": change.wanted,
    }


__all__ = ["ShownConsumer"]
