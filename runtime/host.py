"""One process of the host: starts functions, serves, follows reloads and drains."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from runtime.binding.service import ServiceBinding
from runtime.block_attribution import BlockAttribution
from runtime.broker.connection import API_TIMEOUT_S, Broker
from runtime.broker.system_account import SystemAccount
from runtime.deployments.deployment import Deployment, flowing
from runtime.deployments.deployment_changes import DeploymentChanges
from runtime.deployments.function_bindings import Binding
from runtime.deployments.function_change import FunctionChange
from runtime.errors import Unavailable
from runtime.function_streams import with_own_streams
from runtime.host_options import HostOptions
from runtime.loader import Function, LoadFailure
from runtime.manifest import Manifest
from runtime.observe.logs import get_logger
from runtime.observe.metrics import Metrics
from runtime.probes import Probes
from runtime.resource.shared import SharedResources
from runtime.start_and_drain import all_or_none, drain_in_order, stop_all
from runtime.wiring import Wiring

log = get_logger("runtime.host")


_START_API_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of the servers. May contain passwords: never logged."""

    nats_url: str
    database_url: str | None
    nats_system_url: str | None = None


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
        self._manifest = manifest
        self._functions = functions
        self._addresses = addresses
        self._metrics = metrics
        self._options = options or HostOptions()
        self._stack = AsyncExitStack()
        self._deployments: dict[str, Deployment] = {}
        self._wiring: Wiring | None = None
        self._changes: DeploymentChanges | None = None
        self._broker: Broker | None = None
        self.has_begun = False
        self._resources = SharedResources(
            functions,
            addresses.database_url,
            self._options.postgres_connections,
            partial(SystemAccount.connect, addresses.nats_system_url)
            if addresses.nats_system_url
            else None,
        )
        self.probes = Probes(
            self._resources,
            bindings=lambda: flowing(self._deployments.values()),
            threads=lambda: [each.threads for each in self._deployments.values() if each.threads],
            reload_errors=self._reload_errors,
        )
        self.blocks = BlockAttribution(functions)

    @property
    def bindings(self) -> list[Binding]:
        """The bindings of all functions but endpoints, and what answers discovery and endpoints."""
        found = [
            binding for each in self._deployments.values() for binding in each.bindings.current
        ]
        return [*found, *([self._wiring.discovery] if self._wiring else [])]

    @property
    def functions(self) -> dict[str, Function]:
        """The versions that run now, by name."""
        return {name: each.function for name, each in self._deployments.items()}

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

    async def apply(
        self,
        manifest: Manifest,
        functions: Mapping[str, Function],
        errors: Mapping[str, LoadFailure],
    ) -> list[FunctionChange]:
        """Let this process run these versions; what cannot be changed runs on as it is.

        Call it for every reload, also while a call of it runs: a binding that drains takes as long
        as its calls, and only later changes of the same function wait for it. Of several calls that
        wait, the last one counts, and the others return at once. Nothing is raised: each failure is
        a change that `failed`, is logged by its cause alone, and shows in `/readyz`, in metadata
        and in `runtime ls` until a later call mends it. A host that drains refuses: it logs a line
        and returns no changes.

        Args:
            manifest: what the process shall serve.
            functions: the complete set of this process's functions. One whose new source is broken
                keeps its previous version, and so does one whose entry in a manifest is.
            errors: by function, why a newer version than the one in `functions` does not run. Other
                names, such as a file's, are shown in `/readyz` alone.

        Returns:
            The changes, failures included; nothing for a function that did not change.
        """
        if self._changes is None or self.probes.is_draining:
            log.warning("Not reloaded: the host starts or drains")
            return []
        return await self._changes.apply(manifest, functions, errors)

    async def drain(self, grace_s: float) -> None:
        """Take no new messages, finish the held ones within `grace_s`, then stop.

        Services end first, then consumers and schedules, and endpoints last, because functions that
        still work may call them. A reload that is under way is cut short.
        """
        self.probes.is_draining = True
        try:
            if self._changes is not None:
                await self._changes.stop()
            await drain_in_order(self._groups(), grace_s, self._options.before_endpoints)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop at once; unfinished messages go back to their stream."""
        self.probes.is_draining = True
        if self._changes is not None:
            await self._changes.stop()
        await stop_all(self.bindings)
        await self._stack.aclose()

    def held(self) -> dict[str, int]:
        """The number of held messages that are not settled, by function."""
        return {
            name: self._metrics.function(name).in_flight
            for name, function in self.functions.items()
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
        cut_off = asyncio.create_task(self._wait_until_cut_off())
        over: set[ServiceBinding] = set()
        try:
            while True:
                await self._wait_for_services(cut_off, over)
        finally:
            cut_off.cancel()
            await asyncio.gather(cut_off, return_exceptions=True)

    async def _wait_for_services(
        self, cut_off: "asyncio.Task[NoReturn]", over: set[ServiceBinding]
    ) -> None:
        """Return when a service has ended or a reload has changed a function."""
        services = [each for each in self._service_bindings() if each not in over]
        ends = {asyncio.create_task(each.wait()): each for each in services}
        changed = asyncio.create_task(self._wait_for_change())
        try:
            waits = [cut_off, changed, *ends]
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            over |= {service for task, service in ends.items() if task in done}
            for task in done:
                task.result()
        finally:
            for task in (changed, *ends):
                task.cancel()
            await asyncio.gather(changed, *ends, return_exceptions=True)

    async def _wait_for_change(self) -> None:
        if self._changes is None:
            await asyncio.get_running_loop().create_future()
        else:
            await self._changes.wait_for_change()

    async def _wait_until_cut_off(self) -> NoReturn:
        if self._broker is None:
            raise RuntimeError("the host was not started")
        await self._broker.wait_until_ended()
        log.error("The connection to NATS is closed for good, the process ends")
        raise Unavailable("NATS", "the connection is closed for good; start the process again")

    def _service_bindings(self) -> list[ServiceBinding]:
        # Not one that is being replaced: when a new version fails at once, the old one runs again.
        return [
            binding
            for each in self._deployments.values()
            if not each.is_changing
            for binding in each.bindings.services
        ]

    async def _start(self) -> None:
        wiring = await self._connect()
        await wiring.logs.start()
        self._stack.push_async_callback(wiring.logs.stop)
        await wiring.streams.prepare()
        await self._resources.open()
        self._stack.push_async_callback(self._resources.close)
        ticker = wiring.build_ticker()
        self.probes.tasks = [ticker.task, ticker.settler.task]
        self.blocks.connected = (wiring.broker, ticker)
        await wiring.build_shared(ticker, self.probes)
        self._stack.push_async_callback(self._close_deployments)
        for function in self._functions.values():
            self._deployments[function.name] = Deployment(function, wiring)
        deployments = list(self._deployments.values())
        await all_or_none(each.start() for each in deployments)
        for deployment in deployments:
            deployment.bind()
        self.has_begun = True
        await wiring.unread.look()
        await self._start_bindings()
        wiring.start_watches()
        wiring.broker.api_timeout_s = API_TIMEOUT_S
        self.probes.stream_watches = (wiring.fill, wiring.unread)
        self._changes = DeploymentChanges(
            self._manifest,
            self._deployments,
            wiring,
            followers=(self.blocks.follow, lambda _: self.probes.follow_resources()),
        )
        self.probes.has_started = True

    async def _connect(self) -> Wiring:
        broker = await Broker.connect(self._addresses.nats_url, name="runtime")
        self._broker = self.probes.broker = broker
        # A cluster answers late while several hosts make their streams and consumers.
        broker.api_timeout_s = _START_API_TIMEOUT_S
        self._stack.push_async_callback(broker.close)
        broker.on_reconnect(self._count_reconnect)
        self._wiring = Wiring(
            with_own_streams(self._manifest),
            self._functions,
            self._options,
            self._metrics,
            broker=broker,
            resources=self._resources,
            stack=self._stack,
        )
        return self._wiring

    async def _start_bindings(self) -> None:
        services, others, endpoints = self._groups()
        # Endpoints before their callers: a gateway calls the endpoints of its own host first.
        for group in (endpoints, others, services):
            await all_or_none(binding.start() for binding in group)

    async def _close_deployments(self) -> None:
        await asyncio.gather(*(each.close() for each in self._deployments.values()))

    def _groups(self) -> tuple[list[Binding], list[Binding], list[Binding]]:
        """Services; consumers and schedules; endpoints."""
        bindings = [each for one in self._deployments.values() for each in one.bindings.current]
        services = [each for each in bindings if isinstance(each, ServiceBinding)]
        others = [each for each in bindings if each not in services]
        return list(services), others, [self._wiring.discovery] if self._wiring else []

    def _reload_errors(self) -> dict[str, str]:
        errors = dict(self._changes.errors) if self._changes else {}
        for name, deployment in self._deployments.items():
            status = deployment.status
            if status is not None and status.reload_error:
                errors[name] = status.reload_error
        return errors

    def _count_reconnect(self) -> None:
        self._metrics.reconnects += 1


__all__ = ["Addresses", "Host", "HostOptions"]
