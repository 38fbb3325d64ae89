"""`runtime ls`: lists every function with its state on the server and on the hosts."""

import asyncio
import json
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import click

from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.broker.function_consumers import FunctionConsumer, count_parked, find_consumers
from runtime.broker.stream_configs import MAILBOX, SCHEDULES
from runtime.cli.connection import nats_url_option, run
from runtime.cli.function_table import FunctionView, draw_functions
from runtime.cli.printing import print_json, printable, wrapped
from runtime.cli.selection import FunctionFilter, Kind, function_filter

ANSWERS_S = 1.0
"""How long to wait for the hosts' answers."""


@click.command()
@function_filter
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each function, a line.")
@nats_url_option
def ls(chosen: FunctionFilter, as_json: bool, nats_url: str | None) -> None:
    """Show every function: its backlog, its failures, and the instances of each version.

    INSTANCES counts processes, a worker each. A function that has consumers but no instance is
    not running anywhere. The endpoints of a micro service are one row, unless a filter names them.
    On a terminal, columns that do not fit are left out.
    """
    every = run(nats_url, _find_functions)
    views = [view for view in every if chosen.takes(view.function, view.kind, view.service)]
    if as_json:
        for view in views:
            print_json(asdict(view) | {"instances": view.instances})
    elif not every:
        click.echo("No functions: no host runs, and none ever bound one on this server.")
    elif not views:
        click.echo("No functions match.")
    else:
        draw_functions(views, folds=chosen.folds)
        for view in views:
            if view.drift:
                line = f"{printable(view.function)}: {printable(view.drift)}"
                click.echo(wrapped(line, sys.stdout))


async def _find_functions(broker: Broker) -> list[FunctionView]:
    views: dict[str, FunctionView] = {}
    consumers, letters, hosts = await asyncio.gather(
        find_consumers(broker), DeadLetters(broker).counts(), _ask_hosts(broker)
    )
    for name in consumers.keys() | letters.keys() | hosts.keys():
        views[name] = FunctionView(name, dead_letters=letters.get(name, 0))
    for name, answers in hosts.items():
        views[name].kind, views[name].service = answers[0].kind, answers[0].service
        views[name].bound_to = answers[0].bound_to
        views[name].versions = dict(Counter(answer.version for answer in answers))
        views[name].drift = next((answer.drift for answer in answers if answer.drift), "")
    for name, found in consumers.items():
        _add_consumers(views[name], found)
        views[name].parked = await count_parked(broker, name)
    return [views[name] for name in sorted(views)]


def _add_consumers(view: FunctionView, consumers: list[FunctionConsumer]) -> None:
    own = [consumer for consumer in consumers if consumer.stream != MAILBOX]
    is_schedule = any(consumer.stream == SCHEDULES for consumer in own)
    view.kind = "schedule" if is_schedule else "consumer"
    view.bound_to = " ".join(consumer.name for consumer in own)
    view.pending = sum(consumer.pending for consumer in consumers)
    view.ack_pending = sum(consumer.ack_pending for consumer in consumers)
    view.retried = sum(consumer.redelivered for consumer in consumers)
    view.paused_until = consumers[0].paused_until


@dataclass(frozen=True, slots=True)
class _Instance:
    """One process's answer about one function."""

    function: str
    kind: Kind
    version: str
    bound_to: str = ""
    service: str = ""
    drift: str = ""


async def _ask_hosts(broker: Broker) -> dict[str, list[_Instance]]:
    """The answers of all instances, by function."""
    found: dict[str, list[_Instance]] = defaultdict(list)
    for reply in await broker.request_many("$SRV.INFO", b"", wait_s=ANSWERS_S):
        try:
            for instance in _instances_of(json.loads(reply.data)):
                found[instance.function].append(instance)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # Another application's service, whose metadata may differ.
    return found


def _instances_of(service: dict[str, Any]) -> list[_Instance]:
    own = service.get("metadata") or {}
    if "handler" in own:
        return [_Instance(service["name"], "service", own["code_version"])]
    return [
        _instance_of(str(service["name"]), endpoint["subject"], metadata)
        for endpoint in service["endpoints"]
        if "function" in (metadata := endpoint.get("metadata") or {})
    ]


def _instance_of(service: str, subject: str, metadata: dict[str, Any]) -> _Instance:
    function, version = metadata["function"], metadata["code_version"]
    if "durable" not in metadata:
        return _Instance(function, "endpoint", version, subject, service)
    kind: Kind = "schedule" if metadata.get("stream") == SCHEDULES else "consumer"
    return _Instance(function, kind, version, subject, drift=str(metadata.get("drift", "")))
