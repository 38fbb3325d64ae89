"""The state of every function, as JetStream and the hosts report it."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.broker.function_consumers import FunctionConsumer, count_parked, find_consumers
from runtime.broker.stream_configs import MAILBOX, SCHEDULES
from runtime.cli.instances import ANSWERS_S, Instance, ask_hosts
from runtime.cli.load import Load, load_of

_PLAIN = (
    *("function", "kind", "service", "bound_to", "pending", "ack_pending", "retried", "parked"),
    *("dead_letters", "instances", "versions", "paused_until", "drift"),
)


@dataclass(slots=True)
class FunctionView:
    """The state of one function.

    Attributes:
        kind: the kind of its binding; empty when only dead letters of the function exist.
        service: the micro service of an endpoint; empty for any other function.
        bound_to: `stream/durable`, or an endpoint's subject; empty for a service.
        pending: messages not delivered yet, in its stream and its mailbox; None without a consumer.
        ack_pending: messages delivered and not settled.
        retried: those of `ack_pending` that were delivered more than once.
        parked: messages that wait for a later attempt in the mailbox.
        dead_letters: messages that were given up, and neither redriven nor purged.
        processes: the processes that run the function, sorted by machine and number.
        load: the load of the last seconds; None when no process counts messages.
        paused_until: end of the pause; None when the function is not paused.
    """

    function: str
    kind: str = ""
    service: str = ""
    bound_to: str = ""
    pending: int | None = None
    ack_pending: int | None = None
    retried: int | None = None
    parked: int | None = None
    dead_letters: int = 0
    processes: Sequence[Instance] = ()
    load: Load | None = None
    paused_until: datetime | None = None

    @property
    def instances(self) -> int:
        """The number of processes that run the function."""
        return len(self.processes)

    @property
    def versions(self) -> dict[str, int]:
        """The number of instances of each version of its code."""
        return dict(Counter(each.version for each in self.processes))

    @property
    def drift(self) -> str:
        """How its stream and consumers differ from the manifest of a host that runs it."""
        return next((each.drifted for each in self.processes if each.drifted), "")

    @property
    def failed_reloads(self) -> list[Instance]:
        """The processes whose last reload failed."""
        return [each for each in self.processes if each.reload_error]

    def as_document(self) -> dict[str, Any]:
        """The view for JSON."""
        load = self.load
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "messages_per_s": _rounded(load.messages_per_s if load else None),
            "error_share": _rounded(load.error_share if load else None),
            "p50_s": _rounded(load.p50_s if load else None),
            "p99_s": _rounded(load.p99_s if load else None),
            "processes": [_process(each) for each in self.processes],
        }


async def find_functions(broker: Broker, wait_s: float = ANSWERS_S) -> list[FunctionView]:
    """Every function that a host runs, or that has consumers or dead letters; sorted by name.

    Args:
        broker: the connection.
        wait_s: how long to wait for the hosts' answers.

    Raises:
        Unavailable: JetStream does not answer.
    """
    consumers, letters, instances = await asyncio.gather(
        find_consumers(broker), DeadLetters(broker).counts(), ask_hosts(broker, wait_s)
    )
    by_function: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_function[instance.function].append(instance)
    names = sorted(consumers.keys() | letters.keys() | by_function.keys())
    views = {name: FunctionView(name, dead_letters=letters.get(name, 0)) for name in names}
    for name, found in by_function.items():
        _add_instances(views[name], found)
    parked = await asyncio.gather(*(count_parked(broker, name) for name in consumers))
    for (name, own), number in zip(consumers.items(), parked, strict=True):
        _add_consumers(views[name], own)
        views[name].parked = number
    return list(views.values())


def _add_instances(view: FunctionView, instances: Sequence[Instance]) -> None:
    view.processes = sorted(instances, key=lambda each: (each.host, each.worker, each.pid))
    first = view.processes[0]
    view.kind, view.service, view.bound_to = first.kind, first.service, first.bound_to
    recents = [each.recent for each in instances if each.recent is not None]
    view.load = load_of(recents) if recents else None


def _add_consumers(view: FunctionView, consumers: Sequence[FunctionConsumer]) -> None:
    own = [consumer for consumer in consumers if consumer.stream != MAILBOX]
    is_schedule = any(consumer.stream == SCHEDULES for consumer in own)
    view.kind = "schedule" if is_schedule else "consumer"
    view.bound_to = " ".join(consumer.name for consumer in own)
    view.pending = sum(consumer.pending for consumer in consumers)
    view.ack_pending = sum(consumer.ack_pending for consumer in consumers)
    view.retried = sum(consumer.redelivered for consumer in consumers)
    view.paused_until = consumers[0].paused_until


def _rounded(number: float | None) -> float | None:
    """Six decimal places; None for a number that JSON cannot hold."""
    return None if number is None or number in (float("inf"), -float("inf")) else round(number, 6)


def _process(instance: Instance) -> dict[str, Any]:
    names = ("host", "pid", "worker", "version", "version_since", "reloaded_at", "reload_error")
    return {name: getattr(instance, name) for name in names}


__all__ = ["FunctionView", "find_functions"]
