"""One process of the host: starts functions, serves and drains."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NoReturn

from runtime.binding.service import ServiceBinding
from runtime.block_attribution import BlockAttribution
from runtime.broker.connection import Broker
from runtime.broker.leases import with_leases
from runtime.broker.ticks import with_ticks
from runtime.discovery import Discovery
from runtime.errors import Unavailable
from runtime.host_options import HostOptions
from runtime.loader import Function
from runtime.manifest import Manifest
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics
from runtime.probes import Probes
from runtime.resource.shared import SharedResources
from runtime.start_and_drain import all_or_none, drain_in_order, stop_all
from runtime.supervised_task import SupervisedTask
from runtime.wiring import Binding, Wiring

log = get_logger("runtime.host")


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of the servers. May contain passwords: never logged."""

    nats_url: str
    database_url: str | None


class Host:
    """Runs the functions of a manifest in this process.

    Args:
        manifest: the manifest, whose streams and consumers this process creates.
        functions: the loaded functions of this process.
        addresses: addresses of NATS and PostgreSQL.
        metrics: the process's metrics.
        options: how the functions run.

    Attributes:
        has_begun: whether functions may have begun to work.
        probes: the readiness probes.
        blocks: names the function that blocks the event loop.
    """

    def __init__(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        addresses: Addresses,
        metrics: Metrics,
        options: HostOptions | None = None,
    ) -> None:
        self._manifest = with_leases(with_ticks(manifest))
        self._functions = functions
        self._addresses = addresses
        self._metrics = metrics
        self._options = options or HostOptions()
        self._stack = AsyncExitStack()
        self._bindings: list[Binding] = []
        self._broker: Broker | None = None
        self.has_begun = False
        self._resources = SharedResources(
            functions, addresses.database_url, self._options.postgres_connections
        )
        self.probes = Probes(self._bindings, self._resources)
        self.blocks = BlockAttribution(functions)

    async def start(self) -> None:
        """Connect, create the streams, start the functions, then bind them.

        Raises:
            ConfigError: the manifest or the environment must be changed.
            Unavailable: NATS or PostgreSQL does not answer.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def drain(self, grace_s: float) -> None:
        """Take no new messages, finish the held ones within `grace_s`, then stop.

        Services end first, then consumers and schedules, and endpoints last, because functions that
        still work may call them.
        """
        self.probes.is_draining = True
        try:
            await drain_in_order(self._groups(), grace_s, self._options.before_endpoints)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop at once; unfinished messages go back to their stream."""
        await stop_all(self._bindings)
        await self._stack.aclose()

    def held(self) -> dict[str, int]:
        """The number of held messages that are not settled, by function."""
        return {
            name: self._metrics.function(name).in_flight
            for name, function in self._functions.items()
            if function.spec.consumer or function.spec.schedule
        }

    @property
    def has_failed(self) -> bool:
        """Whether a service has failed for good; `wait_for_failure` raises the reason."""
        return any(service.has_ended for service in self._service_bindings())

    async def wait_for_failure(self) -> None:
        """Wait until this process cannot do its work any more, and raise the reason.

        Raises:
            ConfigError: a service cannot run with its configuration.
            Unavailable: the connection to NATS is closed for good.
        """
        services = [asyncio.ensure_future(service.wait()) for service in self._service_bindings()]
        try:
            await asyncio.gather(self._wait_until_cut_off(), *services)
        finally:
            for service in services:
                service.cancel()

    async def _wait_until_cut_off(self) -> NoReturn:
        if self._broker is None:
            raise RuntimeError("the host was not started")
        await self._broker.wait_until_ended()
        log.error("The connection to NATS is closed for good, the process ends")
        raise Unavailable("NATS", "the connection is closed for good; start the process again")

    def _service_bindings(self) -> list[ServiceBinding]:
        return [binding for binding in self._bindings if isinstance(binding, ServiceBinding)]

    async def _start(self) -> None:
        wiring = await self._connect()
        await wiring.streams.prepare()
        await self._resources.open()
        self._stack.push_async_callback(self._resources.close)
        ticker = wiring.build_ticker()
        self.probes.threads = wiring.threads
        self.probes.tasks = [ticker.task, ticker.settler.task]
        self.blocks.connected = (wiring.broker, ticker)
        shared = await wiring.build_shared(ticker, self.probes)
        functions = self._functions.values()
        self._stack.push_async_callback(wiring.stop_functions)
        await all_or_none(wiring.start_function(each, self._resources) for each in functions)
        for function in functions:
            wiring.bind(function, shared)
        self._bindings.append(wiring.discovery)
        self.has_begun = True
        await self._start_bindings()
        wiring.lag.start()
        self._stack.push_async_callback(wiring.lag.stop)
        wiring.fill.start()
        self._stack.push_async_callback(wiring.fill.stop)
        self.probes.stream_fill = wiring.fill
        wiring.drift.start()
        self._stack.push_async_callback(wiring.drift.stop)
        if self._options.sweeps:
            sweeping = SupervisedTask(wiring.build_sweeper().run, "advisory sweeper").start()
            self._stack.push_async_callback(sweeping.stop)
        self.probes.has_started = True

    async def _connect(self) -> Wiring:
        broker = await Broker.connect(self._addresses.nats_url, name="runtime")
        self._broker = self.probes.broker = broker
        self._stack.push_async_callback(broker.close)
        broker.on_reconnect(self._count_reconnect)
        return Wiring(
            self._manifest,
            self._functions,
            self._options,
            self._metrics,
            broker=broker,
            bindings=self._bindings,
            stack=self._stack,
        )

    async def _start_bindings(self) -> None:
        services, others, endpoints = self._groups()
        # Endpoints before their callers: a gateway calls the endpoints of its own host first.
        for group in (endpoints, others, services):
            await all_or_none(binding.start() for binding in group)

    def _groups(self) -> tuple[list[Binding], list[Binding], list[Binding]]:
        """Services; consumers and schedules; endpoints."""
        services = [each for each in self._bindings if isinstance(each, ServiceBinding)]
        endpoints = [each for each in self._bindings if isinstance(each, Discovery)]
        others = [each for each in self._bindings if each not in services + endpoints]
        return list(services), others, list(endpoints)

    def _count_reconnect(self) -> None:
        self._metrics.reconnects += 1


__all__ = ["Addresses", "Host", "HostOptions"]
