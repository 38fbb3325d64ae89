"""Publishes every function for discovery by `nats micro ls`, `info` and `stats`."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version

from runtime.binding.endpoint import endpoint_metadata
from runtime.broker.connection import Broker
from runtime.broker.drift import Change
from runtime.broker.micro import MicroEndpoint, MicroService
from runtime.broker.pull_source import PullSource
from runtime.deployments.function_status import FunctionStatus
from runtime.loader import Function
from runtime.observe.metrics import FunctionMetrics
from runtime.observe.recent_load import SAMPLE_EVERY_S, RecentLoad, Totals
from runtime.process_identity import ProcessIdentity
from runtime.registration import SIGNATURE, sign_registration
from runtime.shown_consumer import ShownConsumer
from runtime.supervised_task import SupervisedTask

STOP_GRACE_S = 10.0


@dataclass(slots=True)
class _Published:
    """One micro service: its functions, its endpoints by name, and the service once it answers."""

    statuses: list[FunctionStatus] = field(default_factory=list)
    endpoints: dict[str, MicroEndpoint] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    is_function: bool = False
    service: MicroService | None = None
    starts: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def stop(self, grace_s: float) -> None:
        """Stop the service, also if it is about to start."""
        async with self.starts:
            service = self.service
        if service is not None:
            await service.stop(grace_s)

    def describe(self) -> str:
        shared = len(self.endpoints)
        return f"{shared} endpoints" if shared > 1 else self.statuses[0].function.description


class Discovery:
    """The micro services of one process.

    Endpoints that name the same `service` share a service; a consumer-bound function is a service
    of its own with a virtual endpoint, and a service function one without endpoints. Functions may
    be added and removed, and their versions may change, while the services answer.

    Args:
        broker: the connection.
        process: the process that the services name in their metadata.
        registration_key: signs the HTTP exposure of endpoints; None signs nothing.

    Attributes:
        statuses: by function, the version that is shown; a reload changes it.
    """

    def __init__(
        self,
        broker: Broker,
        process: ProcessIdentity | None = None,
        *,
        registration_key: str | None = None,
    ) -> None:
        self.name = "micro services"
        self.statuses: dict[str, FunctionStatus] = {}
        self._broker = broker
        self._registration_key = registration_key
        self._process = (process or ProcessIdentity()).as_metadata()
        self._version = version("nats-function-runtime")
        self._published: dict[str, _Published] = {}
        self._loads: dict[str, RecentLoad] = {}
        self._sampling = SupervisedTask(self._sample, "load of functions")

    @property
    def is_flowing(self) -> bool:
        """Whether the services answer."""
        return all(each.service is not None for each in self._published.values())

    def add_endpoint(
        self, function: Function, endpoint: MicroEndpoint, metrics: FunctionMetrics
    ) -> None:
        """Add an endpoint that answers requests; it does so after the next `start`.

        When the function was added before, the endpoint takes the place of the one before, then.
        """
        binding = function.spec.endpoint
        status = self._add_status(function)
        published = self._publish((binding.service if binding else None) or function.name, status)
        if before := published.endpoints.get(endpoint.name):
            endpoint = replace(endpoint, counters=before.counters)
        counters = endpoint.counters

        def totals() -> Totals:
            return Totals(counters.num_requests, counters.num_errors, metrics.calls_by_bucket)

        def metadata() -> Mapping[str, str]:
            shown = {
                **status.as_metadata(),
                **status.schemas(),
                **endpoint_metadata(status.function),
            }
            return self._sign(status.function, shown)

        def stats() -> Mapping[str, object]:
            return {
                **status.as_metadata(),
                "kind": "endpoint",
                "dead_letters": {},
                "in_flight": metrics.in_flight,
                "recent": self._load_of(function.name),
            }

        self._watch(function.name, totals)
        published.endpoints[endpoint.name] = replace(endpoint, metadata=metadata, stats=stats)

    def _sign(self, function: Function, shown: dict[str, str]) -> dict[str, str]:
        binding = function.spec.endpoint
        if binding and binding.http and self._registration_key:
            shown[SIGNATURE] = sign_registration(self._registration_key, binding.subject, shown)
        return shown

    def add_consumer(
        self,
        function: Function,
        source: PullSource,
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
        name, status = function.name, self._add_status(function)
        shown = ShownConsumer(status, source, metrics, leads=leads, drift=drift)
        self._watch(name, shown.totals)
        published = self._publish(name, status)
        published.metadata = shown.place
        published.endpoints[name] = shown.endpoint(lambda: self._load_of(name))

    def add_service(self, function: Function) -> None:
        """Add a service function, which has no endpoint."""
        self._publish(function.name, self._add_status(function)).is_function = True

    async def start(self) -> None:
        """Start to answer for every function that was added; call it again after adding more.

        Several calls, and `remove`, may run at once: the functions of a reload follow side by side.
        An endpoint that was added again takes the place of the one before, in the same service.

        Raises:
            Unavailable: the connection is gone. Functions that answered before still do.
        """
        for name, published in list(self._published.items()):
            await self._start_service(name, published)
            if published.service is not None:
                await _follow(published.service, published.endpoints)
        await self._end_left_ones()
        if not self._sampling.is_flowing:
            self._sampling.start()

    async def _start_service(self, name: str, published: "_Published") -> None:
        """Start a service that does not answer yet and is still wanted."""
        async with published.starts:
            if published.service is not None or self._published.get(name) is not published:
                return
            service = MicroService(
                self._broker,
                name,
                self._version,
                description=published.describe,
                metadata=self._metadata_of(published),
                endpoints=published.endpoints.values(),
            )
            await service.start()
            published.service = service

    async def remove(self, function: str, grace_s: float) -> None:
        """Stop to answer for one function; requests that have arrived are answered.

        Nothing happens for a function that was not added.
        """
        status = self.statuses.pop(function, None)
        self._loads.pop(function, None)
        for name, published in list(self._published.items()):
            if status not in published.statuses:
                continue
            published.statuses.remove(status)
            published.endpoints.pop(function, None)
            if not published.statuses:
                del self._published[name]
                await published.stop(grace_s)
            elif published.service is not None:
                await published.service.remove_endpoint(function, grace_s)

    async def drain(self, grace_s: float) -> None:
        """Take no more requests, and answer all requests that have arrived."""
        await self._sampling.stop()
        running = [each.service for each in self._published.values() if each.service is not None]
        # Together: one after the other, each could take the whole grace period.
        await asyncio.gather(*(service.stop(grace_s) for service in running))
        for published in self._published.values():
            published.service = None

    async def stop(self) -> None:
        """Stop at once; requests under way are cancelled."""
        await self.drain(0)

    def _add_status(self, function: Function) -> FunctionStatus:
        status = self.statuses.get(function.name)
        if status is None:
            status = self.statuses[function.name] = FunctionStatus(function)
        return status

    def _publish(self, service: str, status: FunctionStatus) -> _Published:
        name = status.function.name
        for other in self._published.values():
            if status in other.statuses:
                # Of the function as it was before: `start` ends what is left of it.
                other.statuses.remove(status)
                if other is not self._published.get(service):
                    other.endpoints.pop(name, None)
        published = self._published.setdefault(service, _Published())
        published.statuses.append(status)
        return published

    async def _end_left_ones(self) -> None:
        """End the services whose functions are shown in another one now."""
        for name, published in list(self._published.items()):
            if not published.statuses:
                del self._published[name]
                await published.stop(STOP_GRACE_S)

    def _metadata_of(self, published: _Published) -> Callable[[], Mapping[str, str]]:
        def metadata() -> Mapping[str, str]:
            own = published.statuses[0].as_metadata() if published.is_function else {}
            return {**published.metadata, **own, **self._process}

        return metadata

    def _watch(self, function: str, totals: Callable[[], Totals]) -> None:
        self._loads[function] = RecentLoad(totals, asyncio.get_running_loop().time())

    def _load_of(self, function: str) -> Mapping[str, object]:
        return asdict(self._loads[function].load(asyncio.get_running_loop().time()))

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            for load in self._loads.values():
                load.sample(loop.time())


async def _follow(service: MicroService, endpoints: Mapping[str, MicroEndpoint]) -> None:
    """Let a service that answers have these endpoints; the new ones answer before others end."""
    for endpoint in list(endpoints.values()):
        if endpoint.name not in service.endpoint_names:
            await service.add_endpoint(endpoint)
        elif service.endpoint(endpoint.name) is not endpoint:
            await service.replace_endpoint(endpoint, STOP_GRACE_S)
    for name in service.endpoint_names - endpoints.keys():
        await service.remove_endpoint(name, STOP_GRACE_S)
