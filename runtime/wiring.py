"""Builds what the functions of a process share, and binds each function to it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from runtime.binding.consumer import ConsumerBinding, SharedServices
from runtime.binding.endpoint import endpoint
from runtime.binding.failures import FailureLogs
from runtime.binding.in_progress import InProgressTicker
from runtime.binding.ordered.leader import OrderedBinding
from runtime.binding.outages import Outages
from runtime.binding.puller_set import Source
from runtime.binding.schedule import ScheduleTicker, tick_subject
from runtime.binding.service import ServiceBinding
from runtime.binding.settlement import SettlementBackends
from runtime.broker.advisories import Sweeper
from runtime.broker.clock import Clock, ServerClock
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.broker.drift import Change, without_memory
from runtime.broker.mailbox import Mailbox
from runtime.broker.settler import Settler
from runtime.broker.stream_configs import (
    FUNCTION_METADATA,
    MAILBOX,
    SCHEDULES,
    Wanted,
    tick_consumer,
)
from runtime.broker.streams import ensure, wanted_objects
from runtime.broker.streams import inspect as inspect_streams
from runtime.context import Context, Scope
from runtime.discovery import Discovery
from runtime.dispatch import Dispatcher
from runtime.drift_watch import DriftWatch
from runtime.errors import ConfigError, Unavailable
from runtime.hooks import call_start, call_stop
from runtime.lag import LagWatch
from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.manifest.model import ConsumerSpec
from runtime.observe.logs import get_logger
from runtime.observe.metrics import ENDPOINT_OUTCOMES, Metrics
from runtime.observe.redaction import hide, secrets_in
from runtime.probes import Probes
from runtime.resource.shared import SharedResources
from runtime.threads import FunctionThreads

log = get_logger("runtime.host")

SETTLER_STOP_S = 5.0


class Binding(Protocol):
    """What the host does with any binding."""

    name: str

    @property
    def is_flowing(self) -> bool:
        """Whether it does its work at this moment."""

    async def start(self) -> None:
        """Begin."""

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, finish what is here, then end."""

    async def stop(self) -> None:
        """End at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """How a process runs its functions.

    Attributes:
        services: whether functions with a lifetime of their own run here too; with several worker
            processes they run in one.
        bind_only: make and change no stream and no consumer.
        clock: what schedules go by; JetStream's unless another is given.
        sweeps: whether it makes dead letters of messages whose processes died.
        careful_ack_waits: see `SharedServices`.
        peers: see `SharedServices`.
        postgres_connections: how many its functions may hold together.
        before_endpoints: awaited by a drain before the endpoints end, for those who call them from
            other processes of this host.
    """

    services: bool = True
    bind_only: bool = False
    clock: Clock | None = None
    sweeps: bool = True
    careful_ack_waits: int = 0
    peers: int = 1
    postgres_connections: int = 16
    before_endpoints: Callable[[], Awaitable[None]] | None = None


class Wiring:
    """Connects the functions of one process with the broker.

    Args:
        manifest: with the streams of leases and ticks.
        functions: those that run here, by name.
        options: how they run.
        metrics: count what happens.
        broker: the connection.
        bindings: grows by each function's.
        stack: ends what is built here.

    Attributes:
        broker: the connection.
        lag: watches the consumers that are bound.
        drift: warns when the server no longer has what the manifest says.
        discovery: shows the functions that are bound.
        threads: those of each plain function that is bound.
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
        self._manifest = manifest
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
        self.lag = LagWatch(broker, self.drift.compare_consumer)
        self.discovery = Discovery(broker)
        self._failures = FailureLogs()
        stack.callback(self._failures.flush)
        self.threads: list[FunctionThreads] = []

    async def prepare_streams(self) -> None:
        """Make JetStream hold what the manifest says, or say where it differs.

        Raises:
            ConfigError: a person must change something first.
            Unavailable: JetStream does not answer.
        """
        known = []
        if self._options.bind_only:
            known = await inspect_streams(self.broker, self._manifest)
            for change in known:
                log.warning("JetStream differs from the manifest", change=str(change))
        else:
            changes = await ensure(self.broker, self._manifest)
            # A server that was started again has lost what it kept in memory; nothing is new in it.
            _log_changes(without_memory(changes))
        self.drift.watch(self._watched_here(), known)

    def _watched_here(self) -> list[Wanted]:
        """The streams and consumers whose drift this process reports.

        Of several processes one reports what they share, and that of an isolated function its own.
        """
        if not self._options.services:
            return []
        owners = [
            (each, (each.config.get("metadata") or {}).get(FUNCTION_METADATA))
            for each in wanted_objects(self.broker, self._manifest)
        ]
        return [
            each
            for each, owner in owners
            if owner in self._functions
            or (self._options.sweeps and owner not in self._manifest.functions)
        ]

    async def build_shared(self, ticker: InProgressTicker, probes: Probes) -> SharedServices:
        """What every consumer binding shares."""
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
        """What settles messages and keeps them alive."""
        settler = Settler(self.broker)
        self._stack.push_async_callback(settler.stop, SETTLER_STOP_S)
        ticker = InProgressTicker(settler)
        self._stack.push_async_callback(ticker.stop)
        return ticker

    def build_sweeper(self) -> Sweeper:
        """What makes dead letters of messages whose processes died."""
        owners = {
            (source.stream, source.durable): name
            for name, function in self._functions.items()
            for source in self._sources(function)
        }
        return Sweeper(self.broker, self._letters, owners)

    async def start_function(self, function: Function, resources: SharedResources) -> None:
        """Make a function's scope and call its `start`.

        Raises:
            ConfigError: the hook failed for a reason of its own.
            Unavailable: a server that the hook needs does not answer.
        """
        bound: structlog.stdlib.BoundLogger = get_logger(function.name).bind(function=function.name)
        own = resources.of(function)
        scope = Scope(function.name, function.settings, self.broker, own, bound)
        self._scopes[function.name] = scope
        hide(secrets_in(function.settings))
        context = Context(scope, is_watched=True)
        if function.start is not None:
            limit_s = function.spec.start_timeout
            scope.state = await call_start(function.name, function.start, context, limit_s)
        if function.stop is not None:
            self._stops.append(partial(call_stop, function.name, function.stop, context))

    async def stop_functions(self) -> None:
        """Call the `stop` of every function that was started, all together."""
        await asyncio.gather(*(stop() for stop in self._stops))

    def bind(self, function: Function, shared: SharedServices) -> None:
        """Build the binding of a function that was started."""
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
                function, endpoint(dispatcher, metrics, self._failures.of(function.name))
            )
            return
        self._bind_consumer(dispatcher, shared)
        if spec.schedule:
            clock = self._clock = self._clock or ServerClock(self.broker)
            self._bindings.append(ScheduleTicker(self.broker, function.name, spec.schedule, clock))

    def _bind_consumer(self, dispatcher: Dispatcher, shared: SharedServices) -> None:
        function = dispatcher.function
        metrics = self._metrics.function(function.name)
        sources = self._sources(function)
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

    def _sources(self, function: Function) -> list[Source]:
        """The consumers a function pulls from: its stream's, then its mailbox."""
        spec, name = function.spec, function.name
        if spec.consumer:
            stream, durable = spec.consumer.stream, spec.consumer.durable_of(name)
            subjects = spec.consumer.filter_subjects or self._manifest.streams[stream].subjects
            ack_wait_s = spec.consumer.ack_wait
        elif spec.schedule:
            stream, durable = SCHEDULES, tick_consumer(name)
            subjects, ack_wait_s = (tick_subject(name),), ConsumerSpec().ack_wait
        else:
            return []
        return [
            Source(stream, durable, subjects, ack_wait_s, self._recreate),
            Source(
                MAILBOX,
                name,
                (f"mailbox.ready.{name}",),
                ack_wait_s,
                self._recreate,
                self._mailbox.restore,
            ),
        ]

    async def _recreate(self) -> None:
        """Make a consumer again that is gone.

        Raises:
            Unavailable: a person must do it.
        """
        try:
            if self._options.bind_only:
                await inspect_streams(self.broker, self._manifest)
            else:
                _log_changes(await ensure(self.broker, self._manifest))
        except ConfigError as refusal:
            raise Unavailable("JetStream", str(refusal)) from refusal


def _log_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        log.debug("JetStream changed", change=str(change))
    if changes:
        log.info("JetStream now has what the manifest says", changes=len(changes))
