"""Publishes every function for discovery by `nats micro ls`, `info` and `stats`."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from runtime.binding.puller_set import Source
from runtime.broker.connection import Broker
from runtime.broker.drift import Change
from runtime.broker.micro import EndpointStats, MicroEndpoint, MicroService
from runtime.drift_watch import describe_drift
from runtime.loader import Function
from runtime.observe.metrics import FunctionMetrics

STOP_GRACE_S = 10.0


class Discovery:
    """The micro services of one process.

    Endpoints that name the same `service` share a service; a consumer-bound function is a service
    of its own with a virtual endpoint.
    """

    def __init__(self, broker: Broker) -> None:
        self.name = "micro services"
        self._broker = broker
        self._version = version("nats-function-runtime")
        self._endpoints: dict[str, list[MicroEndpoint]] = {}
        self._metadata: dict[str, dict[str, str]] = {}
        self._descriptions: dict[str, str] = {}
        self._services: list[MicroService] = []

    @property
    def is_flowing(self) -> bool:
        """Whether the services answer."""
        return len(self._services) == len(self._endpoints)

    def add_endpoint(self, function: Function, endpoint: MicroEndpoint) -> None:
        """Add an endpoint that answers requests."""
        binding = function.spec.endpoint
        service = (binding.service if binding else None) or function.name
        self._endpoints.setdefault(service, []).append(endpoint)
        self._metadata.setdefault(service, {})
        shared = len(self._endpoints[service])
        self._descriptions[service] = (
            function.spec.description if shared == 1 else f"{shared} endpoints"
        )

    def add_consumer(
        self,
        function: Function,
        source: Source,
        metrics: FunctionMetrics,
        *,
        leads: Callable[[], bool] | None = None,
        drift: Callable[[], Sequence[Change]] = tuple,
    ) -> None:
        """Add a virtual endpoint for a function that consumes a stream.

        Args:
            function: the function.
            source: the stream and the consumer of its messages.
            metrics: the function's counters.
            leads: for an ordered function, whether this process is the leader.
            drift: returns how the server's stream and consumers differ from the manifest now.
        """
        counters = EndpointStats()
        name = function.name

        def stats() -> Mapping[str, object]:
            counters.num_requests = sum(metrics.messages.values())
            counters.num_errors = counters.num_requests - metrics.messages["acked"]
            counters.processing_ns = int(metrics.seconds_sum * 1_000_000_000)
            counters.last_error = next(reversed(metrics.dead_letters), "")
            return {
                "outcomes": dict(metrics.messages),
                "dead_letters": dict(metrics.dead_letters),
                "in_flight": metrics.in_flight,
                "pending": metrics.consumer_pending,
                "ack_pending": metrics.consumer_ack_pending,
                "redelivered": metrics.consumer_redelivered,
                "drift": [
                    {
                        "object": change.object,
                        "field": change.field,
                        "server": change.found,
                        "manifest": change.wanted,
                    }
                    for change in drift()
                ],
            }

        def metadata() -> Mapping[str, object]:
            drifted = describe_drift(drift())
            return {
                "stream": source.stream,
                "durable": source.durable,
                "function": name,
                "handler": function.spec.handler,
                "code_version": function.code_version,
                "lag": metrics.consumer_pending,
                "ack_pending": metrics.consumer_ack_pending,
                "redelivered": metrics.consumer_redelivered,
                "dead_letters": sum(metrics.dead_letters.values()),
                **({} if leads is None else {"leads": str(leads()).lower()}),
                **({"drift": drifted} if drifted else {}),
            }

        self._endpoints[name] = [
            MicroEndpoint(
                name=name,
                subject=source.subjects[0],
                queue_group=None,
                metadata=metadata,
                stats=stats,
                counters=counters,
            )
        ]
        self._metadata[name] = {"stream": source.stream, "durable": source.durable}
        self._descriptions[name] = function.spec.description

    def add_service(self, function: Function) -> None:
        """Add a virtual endpoint for a service function."""
        self._endpoints[function.name] = []
        self._metadata[function.name] = {
            "handler": function.spec.handler,
            "code_version": function.code_version,
        }
        self._descriptions[function.name] = function.spec.description

    async def start(self) -> None:
        """Start to answer requests."""
        for name, endpoints in self._endpoints.items():
            service = MicroService(
                self._broker,
                name,
                self._version,
                description=self._descriptions[name],
                metadata=self._metadata[name],
                endpoints=endpoints,
            )
            await service.start()
            self._services.append(service)

    async def drain(self, grace_s: float) -> None:
        """Take no more requests, and answer all requests that have arrived."""
        # Together: one after the other, each could take the whole grace period.
        await asyncio.gather(*(service.stop(grace_s) for service in self._services))
        self._services.clear()

    async def stop(self) -> None:
        """Stop at once; requests under way are cancelled."""
        await self.drain(0)
