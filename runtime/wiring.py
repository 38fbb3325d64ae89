"""Builds the shared services of a process and the binding of each function."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Protocol

import structlog

from runtime.binding.consumer import ConsumerBinding, SharedServices
from runtime.binding.endpoint import endpoint
from runtime.binding.in_progress import InProgressTicker
from runtime.binding.ordered.leader import OrderedBinding
from runtime.binding.schedule import ScheduleTicker
from runtime.binding.service import ServiceBinding
from runtime.binding.settlement import SettlementBackends
from runtime.broker.advisories import Sweeper
from runtime.broker.clock import Clock, ServerClock
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.broker.mailbox import Mailbox
from runtime.broker.settler import Settler
from runtime.context import Scope, WatchedContext
from runtime.discovery import Discovery
from runtime.dispatch import Dispatcher
from runtime.drift_watch import DriftWatch
from runtime.function_streams import FunctionStreams
from runtime.hooks import call_start, call_stop
from runtime.host_options import HostOptions
from runtime.lag import LagWatch
from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.observe.failures import FailureLogs
from runtime.observe.logs import get_logger
from runtime.observe.metrics import ENDPOINT_OUTCOMES, Metrics
from runtime.observe.redaction import hide, secrets_in
from runtime.probes import Probes
from runtime.process_identity import ProcessIdentity
from runtime.resource.outage import Outages
from runtime.resource.shared import SharedResources
from runtime.stream_fill import StreamFill
from runtime.threads import FunctionThreads

log = get_logger("runtime.host")

SETTLER_STOP_S = 5.0


class Binding(Protocol):
    """The interface of every binding."""

    name: str

    @property
    def is_flowing(self) -> bool:
        """Whether the binding works at this moment."""

    async def start(self) -> None:
        """Begin."""

    async def drain(self, grace_s: float) -> None:
        """Take no new messages, finish the held ones, then stop."""

    async def stop(self) -> None:
        """Stop at once."""


class Wiring:
    """Builds the shared services and the bindings of one process.

    Args:
        manifest: with the streams of leases and ticks.
        functions: the functions of this process, by name.
        options: the options of the process.
        metrics: the process's metrics.
        broker: the connection.
        bindings: the list to which each function's binding is added.
        stack: closes everything that is built.

    Attributes:
        broker: the connection.
        lag: polls the consumers of bound functions.
        fill: polls how full streams are.
        drift: warns when the server no longer agrees with the manifest.
        streams: creates the streams and consumers of the functions.
        discovery: publishes the bound functions for discovery.
        threads: the thread pools of the bound plain functions.
    """

    def __init__(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        options: HostOptions,
        metrics: Metrics,
        *,
        broker: Broker,
        bindings: list[Binding],
        stack: AsyncExitStack,
    ) -> None:
        self._functions = functions
        self._options = options
        self._metrics = metrics
        self.broker = broker
        self._bindings = bindings
        self._stack = stack
        self._scopes: dict[str, Scope] = {}
        self._stops: list[Callable[[], Awaitable[None]]] = []
        self._mailbox = Mailbox(broker)
        self._letters = DeadLetters(broker)
        self._clock: Clock | None = options.clock
        self.drift = DriftWatch(broker, metrics)
        self.fill = StreamFill(broker, metrics, self._mailbox, manifest)
        self.lag = LagWatch(broker, self.drift.compare_consumer)
        self.discovery = Discovery(broker, ProcessIdentity(worker=options.worker))
        self.streams = FunctionStreams(
            manifest,
            functions,
            options,
            broker=broker,
            drift=self.drift,
            restore=self._mailbox.restore,
        )
        self._failures = FailureLogs()
        stack.callback(self._failures.flush)
        self.threads: list[FunctionThreads] = []

    async def build_shared(self, ticker: InProgressTicker, probes: Probes) -> SharedServices:
        """Build the services that all consumer bindings share."""
        outages = Outages(probes.servers())
        self._stack.push_async_callback(outages.stop)
        await self._mailbox.detect_parking()
        return SharedServices(
            self.broker,
            SettlementBackends(ticker.settler, self._letters, self._mailbox, self._failures),
            ticker,
            outages,
            self._options.careful_ack_waits,
            self._options.peers,
        )

    def build_ticker(self) -> InProgressTicker:
        """Build the ticker, which sends in-progress signals."""
        settler = Settler(self.broker)
        self._stack.push_async_callback(settler.stop, SETTLER_STOP_S)
        ticker = InProgressTicker(settler)
        self._stack.push_async_callback(ticker.stop)
        return ticker

    def build_sweeper(self) -> Sweeper:
        """Build the sweeper, which makes dead letters of messages whose processes died."""
        owners = {
            (source.stream, source.durable): name
            for name, function in self._functions.items()
            for source in self.streams.sources_of(function)
        }
        return Sweeper(self.broker, self._letters, owners)

    async def start_function(self, function: Function, resources: SharedResources) -> None:
        """Create a function's scope and call its `start`.

        Raises:
            ConfigError: the hook failed for a reason of its own.
            Unavailable: a server that the hook needs does not answer.
        """
        bound: structlog.stdlib.BoundLogger = get_logger(function.name).bind(function=function.name)
        own = resources.of(function)
        scope = Scope(function.name, function.settings, self.broker, own, bound)
        self._scopes[function.name] = scope
        hide(secrets_in(function.settings))
        context = WatchedContext(scope)
        if function.start is not None:
            limit_s = function.spec.start_timeout
            scope.state = await call_start(function.name, function.start, context, limit_s)
        if function.stop is not None:
            self._stops.append(partial(call_stop, function.name, function.stop, context))

    async def stop_functions(self) -> None:
        """Call the `stop` hooks of all started functions concurrently."""
        await asyncio.gather(*(stop() for stop in self._stops))

    def bind(self, function: Function, shared: SharedServices) -> None:
        """Build the binding of a started function."""
        spec, scope = function.spec, self._scopes[function.name]
        if spec.service:
            if self._options.services:
                self._bindings.append(
                    ServiceBinding(function, scope, self._failures.of(function.name))
                )
                self.discovery.add_service(function)
            return
        threads = FunctionThreads(function.name, spec.concurrency)
        self._stack.callback(threads.shutdown)
        if not function.is_async:
            self.threads.append(threads)
        dispatcher = Dispatcher(function, scope, threads=threads)
        if spec.endpoint:
            metrics = self._metrics.function(function.name, ENDPOINT_OUTCOMES)
            self.discovery.add_endpoint(
                function, endpoint(dispatcher, metrics, self._failures.of(function.name)), metrics
            )
            return
        self._bind_consumer(dispatcher, shared)
        if spec.schedule:
            clock = self._clock = self._clock or ServerClock(self.broker)
            self._bindings.append(ScheduleTicker(self.broker, function.name, spec.schedule, clock))

    def _bind_consumer(self, dispatcher: Dispatcher, shared: SharedServices) -> None:
        function = dispatcher.function
        metrics = self._metrics.function(function.name)
        sources = self.streams.sources_of(function)
        self.lag.add(sources[0].stream, sources[0].durable, metrics)
        leads: Callable[[], bool] | None = None
        if function.spec.ordered_by:
            ordered = OrderedBinding(dispatcher, sources, shared, metrics)
            self._bindings.append(ordered)
            leads = lambda: ordered.leads  # noqa: E731
        else:
            self._bindings.append(ConsumerBinding(dispatcher, sources, shared, metrics))
        drift = partial(self.drift.of_function, function.name)
        self.discovery.add_consumer(function, sources[0], metrics, leads=leads, drift=drift)
