"""One process of the host: wires functions to their bindings, serves, drains."""

import asyncio
import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import CodeType
from typing import Any, Protocol

import asyncpg
import structlog

from runtime.binding.block_keepalive import BlockKeepalive
from runtime.binding.consumer import ConsumerBinding, SharedServices
from runtime.binding.endpoint import endpoint
from runtime.binding.in_progress import InProgressTicker
from runtime.binding.ordered.leader import OrderedBinding
from runtime.binding.outages import Outages
from runtime.binding.puller_set import Source
from runtime.binding.schedule import ScheduleTicker, tick_subject, with_ticks
from runtime.binding.service import ServiceBinding
from runtime.binding.settlement import SettlementBackends
from runtime.broker.advisories import Sweeper
from runtime.broker.clock import Clock, ServerClock
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.broker.leases import with_leases
from runtime.broker.mailbox import Mailbox
from runtime.broker.settler import Settler
from runtime.broker.stream_configs import MAILBOX, SCHEDULES, tick_consumer
from runtime.broker.streams import ensure
from runtime.broker.streams import inspect as inspect_streams
from runtime.context import Context, Scope
from runtime.discovery import Discovery
from runtime.dispatch import Dispatcher
from runtime.errors import ConfigError, Problem, Unavailable
from runtime.lag import LagWatch
from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.manifest.model import ConsumerSpec
from runtime.observe.logs import get_logger
from runtime.observe.metrics import ENDPOINT_OUTCOMES, Metrics
from runtime.resource.http import open_http
from runtime.resource.outage import is_outage
from runtime.resource.postgres import open_pool
from runtime.threads import FunctionThreads

log = get_logger("runtime.host")

POOL_SIZE = 10
CLOSE_LIMIT_S = 5.0
START_ERROR_CHARACTERS = 300


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


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the servers are. May hold passwords: never logged."""

    nats_url: str
    database_url: str | None


class Host:
    """Runs the functions of a manifest in this process.

    Args:
        manifest: its streams and consumers are made here.
        functions: those of its functions that run here, loaded.
        addresses: of NATS and PostgreSQL.
        metrics: counts what happens.
        services: whether functions with a lifetime of their own run here too; with several worker
            processes they run in one.
        bind_only: make and change no stream and no consumer.
        clock: what schedules go by; JetStream's unless another is given.
        sweeps: whether it makes dead letters of messages whose processes died.
        careful_ack_waits: see `SharedServices`.
        peers: see `SharedServices`.

    Attributes:
        has_begun: whether functions may be at work already.
    """

    def __init__(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        addresses: Addresses,
        metrics: Metrics,
        *,
        services: bool = True,
        bind_only: bool = False,
        clock: Clock | None = None,
        sweeps: bool = True,
        careful_ack_waits: int = 0,
        peers: int = 1,
    ) -> None:
        self._manifest = with_leases(with_ticks(manifest))
        self._functions = functions
        self._addresses = addresses
        self._metrics = metrics
        self._services = services
        self._bind_only = bind_only
        self._clock = clock
        self._sweeps = sweeps
        self._careful_ack_waits = careful_ack_waits
        self._peers = peers
        self._resources: dict[str, Any] = {}
        self._stack = AsyncExitStack()
        self._scopes: dict[str, Scope] = {}
        self._bindings: list[Binding] = []
        self._broker: Broker | None = None
        self._stand_in: BlockKeepalive | None = None
        self._started = False
        self.has_begun = False
        self._loop_thread = threading.get_ident()
        self._codes: dict[CodeType | str, str] = {}
        for name, function in functions.items():
            if code := getattr(function.handler, "__code__", None):
                self._codes |= {code: name, code.co_filename: name}
        self._mailbox: Mailbox

    async def start(self) -> None:
        """Connect, make the streams, start the functions, then bind them.

        Raises:
            ConfigError: a person must change something first.
            Unavailable: NATS or PostgreSQL does not answer.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def drain(self, grace_s: float) -> None:
        """Take nothing new, finish what is here within `grace_s`, then end."""
        await asyncio.gather(*(binding.drain(grace_s) for binding in self._bindings))
        await self.stop()

    async def stop(self) -> None:
        """End at once; what is unfinished goes back to its stream."""
        await asyncio.gather(*(binding.stop() for binding in self._bindings))
        await self._stack.aclose()

    @property
    def has_failed(self) -> bool:
        """Whether a service has found that it cannot run; `wait_for_failure` says why."""
        return any(service.has_ended for service in self._service_bindings())

    async def wait_for_failure(self) -> None:
        """Return never, unless a service cannot run as it is configured.

        Raises:
            ConfigError: what that service said.
        """
        services = [asyncio.ensure_future(service.wait()) for service in self._service_bindings()]
        forever = asyncio.get_running_loop().create_future()
        try:
            await asyncio.gather(forever, *services)
        finally:
            for service in services:
                service.cancel()

    def _service_bindings(self) -> list[ServiceBinding]:
        return [binding for binding in self._bindings if isinstance(binding, ServiceBinding)]

    def running(self) -> str:
        """The name of the function whose code is on the loop's stack now, for a warning."""
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the only door there is
        module = ""
        while frame is not None:
            code = frame.f_code
            if name := self._codes.get(code):
                return name
            # One of those in the module, when the handler itself is not there, as for a decorated.
            module = module or self._codes.get(code.co_filename, "")
            frame = frame.f_back
        return module

    def stand_in(self, blocked_s: float) -> None:
        """Keep the connection, and what is here, while a function blocks; for another thread."""
        if self._stand_in is not None:
            function = self._functions.get(self.running())
            is_at_work = function is not None and blocked_s < function.spec.timeout
            self._stand_in.act(is_at_work=is_at_work)

    async def check_nats(self) -> str | None:
        """A probe: JetStream answers."""
        if self._broker is None:
            return "STARTING"
        await self._broker.ping()
        return None

    async def check_postgres(self) -> str | None:
        """A probe: PostgreSQL answers."""
        pool = self._resources.get("postgres")
        if pool is None:
            return "STARTING"
        await pool.fetchval("SELECT 1", timeout=2)
        return None

    async def check_functions(self) -> str | None:
        """A probe: every function is bound and does its work."""
        if not self._started:
            return "STARTING"
        stuck = [binding.name for binding in self._bindings if not binding.is_flowing]
        return f"NOT_FLOWING {' '.join(stuck)}" if stuck else None

    def probes(self) -> dict[str, Any]:
        """The readiness probes, by name."""
        probes: dict[str, Any] = {"nats": self.check_nats, "functions": self.check_functions}
        if self._uses("postgres"):
            probes["postgres"] = self.check_postgres
        return probes

    async def _start(self) -> None:
        broker = await Broker.connect(self._addresses.nats_url, name="runtime")
        self._broker = broker
        self._stack.push_async_callback(broker.close)
        broker.on_reconnect(self._count_reconnect)
        await self._prepare_streams(broker)
        await self._open_resources()
        workplace, sweeper = await self._build_shared(broker)
        await asyncio.gather(
            *(self._start_function(function, broker) for function in self._functions.values())
        )
        lag = LagWatch(broker)
        discovery = Discovery(broker)
        for function in self._functions.values():
            self._bind(function, workplace, lag, discovery)
        self._bindings.append(discovery)
        self.has_begun = True
        services = self._service_bindings()
        others = [binding for binding in self._bindings if binding not in services]
        await asyncio.gather(*(binding.start() for binding in others))
        # Services come last: a gateway looks for the endpoints of its own host first of all.
        await asyncio.gather(*(service.start() for service in services))
        lag.start()
        self._stack.push_async_callback(lag.stop)
        if self._sweeps:
            sweeping = asyncio.create_task(sweeper.run(), name="advisory sweeper")
            self._stack.push_async_callback(_end, sweeping)
        self._started = True

    async def _prepare_streams(self, broker: Broker) -> None:
        if self._bind_only:
            for change in await inspect_streams(broker, self._manifest):
                log.warning("JetStream differs from the manifest", change=str(change))
            return
        changes = await ensure(broker, self._manifest)
        for change in changes:
            log.debug("JetStream changed", change=str(change))
        if changes:
            log.info("JetStream now has what the manifest says", changes=len(changes))

    async def _open_resources(self) -> None:
        if self._uses("postgres"):
            if self._addresses.database_url is None:
                raise ValueError("a function uses postgres, but no address was given")
            pool = await open_pool(self._addresses.database_url, max_size=POOL_SIZE)
            self._resources["postgres"] = pool
            self._stack.push_async_callback(_close_pool, pool)
        if self._uses("http"):
            client = open_http()
            self._resources["http"] = client
            self._stack.push_async_callback(client.aclose)

    def _uses(self, resource: str) -> bool:
        return any(resource in function.spec.uses for function in self._functions.values())

    async def _build_shared(self, broker: Broker) -> tuple[SharedServices, Sweeper]:
        settler = Settler(broker)
        self._stack.push_async_callback(settler.stop, 5.0)
        ticker = InProgressTicker(settler)
        self._stack.push_async_callback(ticker.stop)
        self._stand_in = BlockKeepalive(broker, ticker)
        probes = {"NATS": self.check_nats}
        if "postgres" in self._resources:
            probes["PostgreSQL"] = self.check_postgres
        outages = Outages(probes)
        self._stack.push_async_callback(outages.stop)
        self._mailbox = mailbox = Mailbox(broker)
        await mailbox.look()
        letters = DeadLetters(broker)
        owners = {
            (source.stream, source.durable): name
            for name, function in self._functions.items()
            for source in self._sources(function)
        }
        desk = SettlementBackends(settler, letters, mailbox)
        workplace = SharedServices(
            broker, desk, ticker, outages, self._careful_ack_waits, self._peers
        )
        return workplace, Sweeper(broker, letters, owners)

    async def _start_function(self, function: Function, broker: Broker) -> None:
        resources: dict[str, Any] = {name: self._resources[name] for name in function.spec.uses}
        bound: structlog.stdlib.BoundLogger = get_logger(function.name).bind(function=function.name)
        scope = Scope(function.name, function.settings, broker, resources, bound)
        self._scopes[function.name] = scope
        if function.start is not None:
            scope.state = await _start(function.name, function.start, Context(scope))
        if function.stop is not None:
            self._stack.push_async_callback(_stop, function.name, function.stop, Context(scope))

    def _bind(
        self, function: Function, workplace: SharedServices, lag: LagWatch, discovery: Discovery
    ) -> None:
        spec, scope = function.spec, self._scopes[function.name]
        if spec.service:
            if self._services:
                self._bindings.append(ServiceBinding(function, scope))
                discovery.add_service(function)
            return
        threads = FunctionThreads(function.name, spec.concurrency)
        self._stack.callback(threads.shutdown)
        dispatcher = Dispatcher(function, scope, threads=threads)
        if spec.endpoint:
            metrics = self._metrics.function(function.name, ENDPOINT_OUTCOMES)
            discovery.add_endpoint(function, endpoint(dispatcher, metrics))
            return
        metrics = self._metrics.function(function.name)
        sources = self._sources(function)
        lag.add(sources[0].stream, sources[0].durable, metrics)
        if spec.ordered_by:
            ordered = OrderedBinding(dispatcher, sources, workplace, metrics)
            self._bindings.append(ordered)
            discovery.add_consumer(function, sources[0], metrics, leads=lambda: ordered.leads)
        else:
            self._bindings.append(ConsumerBinding(dispatcher, sources, workplace, metrics))
            discovery.add_consumer(function, sources[0], metrics)
        if spec.schedule:
            broker = workplace.broker
            clock = self._clock = self._clock or ServerClock(broker)
            self._bindings.append(ScheduleTicker(broker, function.name, spec.schedule, clock))

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
        if self._broker is None:
            return
        try:
            await self._prepare_streams(self._broker)
        except ConfigError as refusal:
            raise Unavailable("JetStream", str(refusal)) from refusal

    def _count_reconnect(self) -> None:
        self._metrics.reconnects += 1


async def _call(hook: Callable[..., Any], context: Context) -> Any:  # noqa: ANN401 - the hook's own
    """Call a module's `start` or `stop`, which may be plain functions."""
    result = hook(context)
    return await result if inspect.isawaitable(result) else result


async def _start(name: str, hook: Callable[..., Any], context: Context) -> Any:  # noqa: ANN401
    """What a module's `start` returns.

    Raises:
        ConfigError: it failed for a reason of its own.
        Unavailable: a server that it needs does not answer.
    """
    try:
        return await _call(hook, context)
    except (ConfigError, Unavailable):
        raise
    except Exception as failure:
        kind = type(failure).__name__
        if is_outage(failure):
            raise Unavailable(f"what function {name} needs to start", kind) from failure
        log.exception("A function cannot start", function=name)
        wrong = f"its start failed: {kind}: {str(failure)[:START_ERROR_CHARACTERS]}"
        remedy = "correct the module, or what it needs"
        raise ConfigError([Problem(f"function {name}", "", wrong, remedy)]) from failure


async def _stop(name: str, hook: Callable[..., Any], context: Context) -> None:
    try:
        await _call(hook, context)
    except Exception:
        # The other functions' hooks, and the connections, are to be ended all the same.
        log.exception("A function's stop failed", function=name)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _close_pool(pool: "asyncpg.Pool[asyncpg.Record]") -> None:
    try:
        await asyncio.wait_for(pool.close(), CLOSE_LIMIT_S)
    except TimeoutError:
        pool.terminate()
