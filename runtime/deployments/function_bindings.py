"""The bindings of one function in a process, and its entry in discovery."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from runtime.binding.consumer import ConsumerBinding
from runtime.binding.endpoint import endpoint
from runtime.binding.ordered.leader import OrderedBinding
from runtime.binding.schedule import ScheduleTicker
from runtime.binding.service import ServiceBinding
from runtime.deployments.how_to_apply import kind_of
from runtime.deployments.started_function import StartedFunction
from runtime.dispatch import Dispatcher
from runtime.observe.logs import get_logger
from runtime.observe.metrics import ENDPOINT_OUTCOMES
from runtime.start_and_drain import all_or_none, stop_all
from runtime.wiring import Wiring

log = get_logger("runtime.host")


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


class FunctionBindings:
    """What pulls, ticks or serves for one function; discovery answers for endpoints.

    Args:
        dispatcher: calls the function.
        wiring: the services that all functions share.

    Attributes:
        current: the bindings; none for an endpoint.
    """

    def __init__(self, dispatcher: Dispatcher, wiring: Wiring) -> None:
        self.current: list[Binding] = []
        self._dispatcher = dispatcher
        self._wiring = wiring
        self._undo: list[Callable[[], None]] = []

    @property
    def services(self) -> list[ServiceBinding]:
        """The binding of a service; empty for any other function."""
        return [each for each in self.current if isinstance(each, ServiceBinding)]

    def build(self, started: StartedFunction, *, has_run: bool = False) -> None:
        """Build the bindings of a version, and show the function in discovery.

        Args:
            started: the version, which the dispatcher runs already.
            has_run: whether the function ran before, so that `at_start` has been kept.
        """
        wiring, function = self._wiring, started.function
        kind = kind_of(function.spec)
        if kind == "service":
            self._build_service(started)
            return
        if kind == "endpoint":
            metrics = wiring.metrics.function(function.name, ENDPOINT_OUTCOMES)
            answering = endpoint(self._dispatcher, metrics, wiring.failures.of(function.name))
            wiring.discovery.add_endpoint(function, answering, metrics)
            return
        self._build_consumer()
        if schedule := function.spec.schedule:
            ticker = ScheduleTicker(
                wiring.broker, function.name, schedule, wiring.clock, has_run=has_run
            )
            self.current.append(ticker)

    async def start(self) -> None:
        """Start all of them, or none, and let discovery show the function.

        Raises:
            ConfigError: a binding cannot start with its configuration.
            Unavailable: NATS does not answer.
        """
        await all_or_none(each.start() for each in self.current)
        await self._wiring.discovery.start()

    async def drain(self, grace_s: float) -> None:
        """Drain all of them; the function stays in discovery."""
        await asyncio.gather(*(_drain(each, grace_s) for each in self.current))
        self.current = []
        self.release()

    def release(self) -> None:
        """Take the function's consumers out of what polls the server."""
        for undo in self._undo:
            undo()
        self._undo.clear()

    def _build_service(self, started: StartedFunction) -> None:
        if not self._wiring.options.services:
            return
        function, failures = started.function, self._wiring.failures.of(started.function.name)
        self.current.append(ServiceBinding(function, started.scope, failures, started.owner))
        self._wiring.discovery.add_service(function)

    def _build_consumer(self) -> None:
        wiring, dispatcher = self._wiring, self._dispatcher
        function = dispatcher.function
        metrics = wiring.metrics.function(function.name)
        sources = wiring.streams.sources_of(function)
        stream = sources[0]
        self._undo += [
            wiring.own(function),
            wiring.lag.add(stream.stream, stream.durable, metrics),
        ]
        leads: Callable[[], bool] | None = None
        if function.spec.ordered_by:
            ordered = OrderedBinding(dispatcher, sources, wiring.shared, metrics)
            self.current.append(ordered)
            leads = lambda: ordered.leads  # noqa: E731
        else:
            self.current.append(ConsumerBinding(dispatcher, sources, wiring.shared, metrics))
        drift = partial(wiring.drift.of_function, function.name)
        wiring.discovery.add_consumer(function, stream, metrics, leads=leads, drift=drift)


async def _drain(binding: Binding, grace_s: float) -> None:
    try:
        await binding.drain(grace_s)
    except Exception:
        log.exception("A binding could not be drained", binding=binding.name)
        await stop_all([binding])


__all__ = ["Binding", "FunctionBindings"]
