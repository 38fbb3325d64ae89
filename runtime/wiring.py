"""Builds the services that all functions of a process share."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from runtime.binding.consumer import SharedServices
from runtime.binding.in_progress import InProgressTicker
from runtime.binding.settlement import SettlementBackends
from runtime.broker.advisories import Sweeper
from runtime.broker.clock import Clock, ServerClock
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.broker.mailbox import Mailbox
from runtime.broker.settler import Settler
from runtime.discovery import Discovery
from runtime.drift_watch import DriftWatch
from runtime.function_streams import FunctionStreams
from runtime.host_options import HostOptions
from runtime.lag import LagWatch
from runtime.loader import Function
from runtime.log_stream.log_publisher import LogPublisher
from runtime.manifest import Manifest
from runtime.observe.failures import FailureLogs
from runtime.observe.metrics import Metrics
from runtime.probes import Probes
from runtime.process_identity import ProcessIdentity
from runtime.resource.outage import Outages
from runtime.resource.shared import SharedResources
from runtime.stream_fill import StreamFill
from runtime.supervised_task import SupervisedTask
from runtime.unread_watch import UnreadWatch

SETTLER_STOP_S = 5.0


class Wiring:
    """The services of one process, which its functions share.

    Args:
        manifest: what the process serves.
        functions: the functions of this process, by name.
        options: the options of the process.
        metrics: the process's metrics.
        broker: the connection.
        resources: the resources of the functions.
        stack: closes everything that is built.

    Attributes:
        options: the options of the process.
        metrics: the process's metrics.
        broker: the connection.
        resources: the resources of the functions.
        failures: the failure log of each function.
        lag: polls the consumers of bound functions.
        fill: polls how full streams are.
        drift: warns when the server no longer agrees with the manifest.
        streams: creates the streams and consumers of the functions.
        logs: sends log lines to listeners.
        discovery: publishes the bound functions for discovery.
        shared: the services of consumer bindings; set by `build_shared`.
    """

    def __init__(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        options: HostOptions,
        metrics: Metrics,
        *,
        broker: Broker,
        resources: SharedResources,
        stack: AsyncExitStack,
    ) -> None:
        self.options = options
        self.metrics = metrics
        self.broker = broker
        self.resources = resources
        self._stack = stack
        self._mailbox = Mailbox(broker)
        self._letters = DeadLetters(broker)
        self._clock: Clock | None = options.clock
        self._owners: dict[tuple[str, str], str] = {}
        self.drift = DriftWatch(broker, metrics)
        self.fill = StreamFill(broker, metrics, self._mailbox, manifest)
        self.lag = LagWatch(broker, self.drift.compare_consumer)
        self.unread = UnreadWatch(broker, metrics, self.lag, manifest)
        process = ProcessIdentity(worker=options.worker)
        self.discovery = Discovery(broker, process, registration_key=options.registration_key)
        self.logs = LogPublisher(broker, process, self.discovery.statuses)
        self.streams = FunctionStreams(
            manifest,
            functions,
            options,
            broker=broker,
            drift=self.drift,
            restore=self._mailbox.restore,
        )
        self.failures = FailureLogs()
        self._shared: SharedServices | None = None
        stack.callback(self.failures.flush)

    @property
    def shared(self) -> SharedServices:
        """The services that all consumer bindings share.

        Raises:
            RuntimeError: `build_shared` was not called.
        """
        if self._shared is None:
            raise RuntimeError("the shared services were not built")
        return self._shared

    @property
    def clock(self) -> Clock:
        """The clock of schedules."""
        if self._clock is None:
            self._clock = ServerClock(self.broker)
        return self._clock

    def build_ticker(self) -> InProgressTicker:
        """Build the ticker, which sends in-progress signals."""
        settler = Settler(self.broker)
        self._stack.push_async_callback(settler.stop, SETTLER_STOP_S)
        ticker = InProgressTicker(settler)
        self._stack.push_async_callback(ticker.stop)
        return ticker

    async def build_shared(self, ticker: InProgressTicker, probes: Probes) -> None:
        """Build the services that all consumer bindings share."""
        outages = Outages(probes.servers())
        self._stack.push_async_callback(outages.stop)
        await self._mailbox.detect_parking()
        self._shared = SharedServices(
            self.broker,
            SettlementBackends(
                ticker.settler,
                self._letters,
                self._mailbox,
                self.failures,
            ),
            ticker,
            outages,
            self.options.careful_ack_waits,
            self.options.peers,
            self.options.settlement,
        )

    def start_watches(self) -> None:
        """Start what polls the server, and the sweeper; the stack stops them."""
        for watch in (self.lag, self.fill, self.unread, self.drift):
            watch.start()
            self._stack.push_async_callback(watch.stop)
        if self.options.sweeps:
            sweeper = Sweeper(self.broker, self._letters, self._owners)
            sweeping = SupervisedTask(sweeper.run, "advisory sweeper").start()
            self._stack.push_async_callback(sweeping.stop)

    def own(self, function: Function) -> Callable[[], None]:
        """Let the sweeper know whose consumers these are; the result takes that back."""
        keys = [(each.stream, each.durable) for each in self.streams.sources_of(function)]
        self._owners |= dict.fromkeys(keys, function.name)

        def disown() -> None:
            for key in keys:
                self._owners.pop(key, None)

        return disown


__all__ = ["SETTLER_STOP_S", "Wiring"]
