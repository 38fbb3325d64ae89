"""`runtime pause` and `runtime resume`: pause a function's consumers on the server."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import click

from runtime.broker import function_consumers
from runtime.broker.clock import ServerClock
from runtime.broker.connection import Broker
from runtime.broker.function_consumers import FOR_EVER, FunctionConsumer
from runtime.cli import parameters
from runtime.cli.connection import nats_url_option, run
from runtime.cli.printing import print_json, show_time
from runtime.errors import ConfigError, Problem

functions_argument = click.argument(
    "functions",
    nargs=-1,
    required=True,
    metavar="FUNCTION...",
    type=parameters.FUNCTION_NAME,
)


@click.command()
@functions_argument
@click.option(
    "--for",
    "for_",
    metavar="DURATION",
    type=parameters.span,
    help="Then resume by itself: 30m, 2h.",
)
@parameters.json_option
@nats_url_option
def pause(
    *, functions: tuple[str, ...], for_: timedelta | None, as_json: bool, nats_url: str | None
) -> None:
    """Stop the delivery of messages for FUNCTION to all hosts, also to hosts that start later.

    Messages that a host holds already are finished. The others wait in their stream, redriven and
    parked ones in the mailbox. Needs nats-server 2.11.
    """
    paused, until = run(nats_url, lambda broker: _pause(broker, functions, for_))
    for name, consumers in paused.items():
        if as_json:
            end = None if until >= FOR_EVER else until
            print_json({"function": name, "paused_until": end, "consumers": _list(consumers)})
        else:
            click.echo(f"{name} paused {show_end(until)} ({', '.join(_list(consumers))})")


@click.command()
@functions_argument
@parameters.json_option
@nats_url_option
def resume(*, functions: tuple[str, ...], as_json: bool, nats_url: str | None) -> None:
    """Deliver messages for FUNCTION again, to all hosts."""
    resumed = run(nats_url, lambda broker: _resume(broker, functions))
    for name, consumers in resumed.items():
        was_paused = any(consumer.paused_until for consumer in consumers)
        if as_json:
            found = {"function": name, "was_paused": was_paused, "consumers": _list(consumers)}
            print_json(found)
        else:
            what = "resumed" if was_paused else "was not paused"
            click.echo(f"{name} {what} ({', '.join(_list(consumers))})")


def show_end(until: datetime) -> str:
    """The end of a pause, in words."""
    return "until resumed" if until >= FOR_EVER else f"until {show_time(until)}"


async def _pause(
    broker: Broker, functions: Sequence[str], for_: timedelta | None
) -> tuple[dict[str, list[FunctionConsumer]], datetime]:
    found = await _find(broker, functions)
    until = FOR_EVER
    if for_:
        # The server ends the pause, so the server's clock counts: this machine's may be wrong.
        stream = found[functions[0]][0].stream
        until = await ServerClock(broker, stream).now() + for_
    for consumers in found.values():
        await function_consumers.pause(broker, consumers, until)
    return found, until


async def _resume(broker: Broker, functions: Sequence[str]) -> dict[str, list[FunctionConsumer]]:
    found = await _find(broker, functions)
    for consumers in found.values():
        await function_consumers.resume(broker, consumers)
    return found


async def _find(broker: Broker, functions: Sequence[str]) -> dict[str, list[FunctionConsumer]]:
    """The consumers of each function; a `ConfigError` comes before anything is paused."""
    function_consumers.check_pausing(broker.server_version)
    known = await function_consumers.find_consumers(broker)
    problems = [
        Problem(
            f"function {name}",
            "",
            "it has no consumer on this server",
            f"functions that can be paused are {', '.join(sorted(known)) or 'none yet'}",
        )
        for name in functions
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    return {name: known[name] for name in functions}


def _list(consumers: Sequence[FunctionConsumer]) -> list[str]:
    return [consumer.name for consumer in consumers]
