"""`runtime ls`: every function at a glance, as the server and the hosts see it."""

import asyncio
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import click

from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.broker.function_consumers import FunctionConsumer, count_parked, find_consumers
from runtime.broker.stream_configs import MAILBOX
from runtime.cli.connection import nats_url_option, run
from runtime.cli.pause import show_end
from runtime.cli.printing import print_json, print_table, printable

ANSWERS_S = 1.0
"""How long hosts have to say what they run."""


@dataclass(slots=True)
class FunctionView:
    """What is known of one function.

    Attributes:
        bound_to: `stream/durable`, or an endpoint's subject; empty for a service.
        pending: messages not delivered yet, in its stream and its mailbox; None without a consumer.
        ack_pending: delivered and not settled.
        retried: of those, the ones that were delivered more than once.
        parked: waiting for a later attempt, outside the consumer.
        dead_letters: given up, and neither redriven nor purged.
        versions: how many instances run which version of its code.
        paused_until: None when it is not paused.
        drift: how its stream and consumers differ from the manifest of a host that runs it.
    """

    function: str
    bound_to: str = ""
    pending: int | None = None
    ack_pending: int | None = None
    retried: int | None = None
    parked: int | None = None
    dead_letters: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    paused_until: datetime | None = None
    drift: str = ""

    @property
    def instances(self) -> int:
        """How many processes run it."""
        return sum(self.versions.values())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@nats_url_option
def ls(as_json: bool, nats_url: str | None) -> None:
    """Show every function: how far behind, what failed, and who runs which version.

    INSTANCES counts processes, a worker each. A function that has consumers but no instance is
    served by nobody.
    """
    views = run(nats_url, _find_functions)
    if as_json:
        for view in views:
            print_json(asdict(view) | {"instances": view.instances})
    elif not views:
        click.echo("No functions: no host runs, and none ever bound one on this server.")
    else:
        _draw_table(views)
        for view in views:
            if view.drift:
                click.echo(f"{printable(view.function)}: {printable(view.drift)}")


async def _find_functions(broker: Broker) -> list[FunctionView]:
    views: dict[str, FunctionView] = {}
    consumers, letters, hosts = await asyncio.gather(
        find_consumers(broker), DeadLetters(broker).counts(), _ask_hosts(broker)
    )
    for name in consumers.keys() | letters.keys() | hosts.keys():
        views[name] = FunctionView(name, dead_letters=letters.get(name, 0))
    for name, answers in hosts.items():
        views[name].bound_to = answers[0].bound_to
        views[name].versions = dict(Counter(answer.version for answer in answers))
        views[name].drift = next((answer.drift for answer in answers if answer.drift), "")
    for name, found in consumers.items():
        _add_consumers(views[name], found)
        views[name].parked = await count_parked(broker, name)
    return [views[name] for name in sorted(views)]


def _add_consumers(view: FunctionView, consumers: list[FunctionConsumer]) -> None:
    own = [consumer.name for consumer in consumers if consumer.stream != MAILBOX]
    view.bound_to = " ".join(own)
    view.pending = sum(consumer.pending for consumer in consumers)
    view.ack_pending = sum(consumer.ack_pending for consumer in consumers)
    view.retried = sum(consumer.redelivered for consumer in consumers)
    view.paused_until = consumers[0].paused_until


@dataclass(frozen=True, slots=True)
class _Instance:
    """What one process says of one function."""

    function: str
    bound_to: str
    version: str
    drift: str = ""


async def _ask_hosts(broker: Broker) -> dict[str, list[_Instance]]:
    """What each instance says, by function."""
    found: dict[str, list[_Instance]] = defaultdict(list)
    for reply in await broker.request_many("$SRV.INFO", b"", wait_s=ANSWERS_S):
        try:
            for instance in _instances_of(json.loads(reply.data)):
                found[instance.function].append(instance)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # Somebody else's service, which need not keep to our metadata.
    return found


def _instances_of(service: dict[str, Any]) -> list[_Instance]:
    own = service.get("metadata") or {}
    if "handler" in own:
        return [_Instance(service["name"], "", own["code_version"])]
    return [
        _Instance(
            metadata["function"],
            endpoint["subject"],
            metadata["code_version"],
            str(metadata.get("drift", "")),
        )
        for endpoint in service["endpoints"]
        if "function" in (metadata := endpoint.get("metadata") or {})
    ]


def _draw_table(views: list[FunctionView]) -> None:
    counts = ("PENDING", "ACK PENDING", "RETRIED", "PARKED", "DEAD LETTERS", "INSTANCES")
    print_table(
        ("FUNCTION", *counts, "VERSION", "STATE", "BOUND TO"),
        [
            (
                printable(view.function),
                *map(_show_count, (view.pending, view.ack_pending, view.retried, view.parked)),
                _show_count(view.dead_letters),
                _show_count(view.instances),
                _show_versions(view.versions),
                _show_state(view),
                printable(view.bound_to),
            )
            for view in views
        ],
        numbers=counts,
    )


def _show_count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _show_versions(versions: dict[str, int]) -> str:
    if len(versions) < 2:  # noqa: PLR2004 - one version needs no count beside it
        return printable("".join(versions)) or "-"
    return " ".join(f"{printable(name)} x{number}" for name, number in sorted(versions.items()))


def _show_state(view: FunctionView) -> str:
    if view.paused_until:
        return f"paused {show_end(view.paused_until)}"
    if not view.instances:
        return "not running"
    return "running, drifted" if view.drift else "running"
