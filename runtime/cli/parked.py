"""`runtime parked`: lists, runs and cancels messages that wait in the mailbox."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import click

from runtime.broker.clock import ServerClock
from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox, Parked
from runtime.broker.stream_configs import MAILBOX, SCHEDULES_SINCE
from runtime.cli import parameters
from runtime.cli.connection import nats_url_option, run
from runtime.cli.failure import exit_with_nothing_done
from runtime.cli.printing import (
    count,
    print_json,
    printable,
    progress_bar,
    show_span,
    show_time,
)
from runtime.cli.table import Column, print_table

TABLE_LIMIT = 100
AT_A_TIME = 100

function_option = click.option(
    "--function", metavar="NAME", type=parameters.FUNCTION_NAME, help="Those of this function."
)


@click.group()
def parked() -> None:
    """List parked messages, make them due now, or give them up."""


@parked.command("ls")
@function_option
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=0),
    help="The N that are due first; 0 is all. Default 100.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@nats_url_option
def list_(function: str | None, limit: int | None, as_json: bool, nats_url: str | None) -> None:
    """List parked messages, the next due one first."""
    found = run(nats_url, lambda broker: _read(broker, function))
    waiting = found.waiting
    waiting.sort(key=lambda each: (each.due_at, each.sequence))
    default = None if as_json else TABLE_LIMIT
    shown = waiting[: (default if limit is None else limit) or None]
    if as_json:
        for each in shown:
            print_json(_describe(each))
    elif found.now is None:
        click.echo(f"No parked messages{found.hint}.")
    else:
        _draw_table(shown, found.now)
        cut = f"the first {len(shown):,} of " if len(shown) < len(waiting) else ""
        more = "; --limit 0 shows all" if cut else ""
        click.echo(f"{cut}{count(len(waiting), 'parked message')}{more}")


@parked.command()
@click.argument("sequences", nargs=-1, metavar="[SEQ]...", type=parameters.SEQUENCE)
@function_option
@parameters.json_option
@nats_url_option
def run_now(
    *, sequences: tuple[int, ...], function: str | None, as_json: bool, nats_url: str | None
) -> None:
    """Make parked messages due now.

    For example when an endpoint works again. Their attempts go on counting.
    """
    _check_choice(sequences, function)
    chosen = run(nats_url, lambda broker: _choose(broker, sequences, function))
    made = run(
        nats_url, lambda broker: _each(broker, "Making due", chosen, Mailbox(broker).run_now)
    )
    _report(made, len(chosen), "made due now", as_json=as_json)


@parked.command()
@click.argument("sequences", nargs=-1, metavar="[SEQ]...", type=parameters.SEQUENCE)
@function_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@parameters.json_option
@nats_url_option
def cancel(
    *,
    sequences: tuple[int, ...],
    function: str | None,
    yes: bool,
    as_json: bool,
    nats_url: str | None,
) -> None:
    """Give parked messages up for good. No dead letter is made. Asks first."""
    _check_choice(sequences, function)
    chosen = run(nats_url, lambda broker: _choose(broker, sequences, function))
    if chosen and not yes:
        question = f"Give {count(len(chosen), 'parked message')} up for good?"
        click.confirm(question, abort=True, err=True)
    made = run(nats_url, lambda broker: _each(broker, "Cancelling", chosen, Mailbox(broker).cancel))
    _report(made, len(chosen), "cancelled", as_json=as_json)


def _check_choice(sequences: tuple[int, ...], function: str | None) -> None:
    if bool(sequences) == bool(function):
        raise click.UsageError("Say which: either sequences, or --function.")


def _report(made: int, chosen: int, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json({done.replace(" ", "_"): made, "missing": chosen - made})
    if not made:
        exit_with_nothing_done("No such parked messages; nothing was done.")
    if as_json:
        return
    click.echo(f"{count(made, 'parked message')} {done}")
    if made < chosen:
        click.echo(f"{chosen - made:,} of {chosen:,} were no longer waiting")


@dataclass(frozen=True, slots=True)
class _Found:
    """The parked messages, the server's time, and a hint why there may be none."""

    waiting: list[Parked]
    now: datetime | None
    hint: str


async def _read(broker: Broker, function: str | None) -> _Found:
    hint = ""
    if broker.server_version < SCHEDULES_SINCE:
        version = ".".join(map(str, broker.server_version))
        hint = f"; nats-server {version} cannot park, it delays in the consumer (2.12 and up can)"
    waiting = [each async for each in Mailbox(broker).list_parked(function)]
    # A server where no function has run yet has no mailbox.
    now = await ServerClock(broker, MAILBOX).now() if waiting else None
    return _Found(waiting, now, hint)


async def _choose(
    broker: Broker, sequences: tuple[int, ...], function: str | None
) -> tuple[int, ...]:
    if sequences:
        return tuple(dict.fromkeys(sequences))
    return tuple([each.sequence async for each in Mailbox(broker).list_parked(function)])


async def _each(
    broker: Broker,
    work: str,
    sequences: tuple[int, ...],
    act: Callable[[int], Awaitable[bool]],
) -> int:
    made = 0
    with progress_bar() as bar:
        task = bar.add_task(work, total=len(sequences))
        for start in range(0, len(sequences), AT_A_TIME):
            chunk = sequences[start : start + AT_A_TIME]
            made += sum(await asyncio.gather(*map(act, chunk)))
            bar.advance(task, len(chunk))
    return made


_COLUMNS = (
    Column("SEQ", is_number=True),
    Column("DUE AT", priority=4),
    Column("IN", is_number=True),
    Column("FUNCTION", least=24, is_name=True),
    Column("ATTEMPT", priority=2, is_number=True),
    Column("SUBJECT", priority=3, least=16),
    Column("REASON", priority=1, least=28),
)


def _draw_table(waiting: list[Parked], now: datetime) -> None:
    print_table(
        _COLUMNS,
        [
            (
                str(each.sequence),
                show_time(each.due_at),
                show_span((each.due_at - now).total_seconds()),
                printable(each.function),
                str(each.message.attempt),
                printable(each.message.subject),
                printable(each.reason),
            )
            for each in waiting
        ],
    )


def _describe(each: Parked) -> dict[str, object]:
    message = each.message
    return {
        "sequence": each.sequence,
        "due_at": each.due_at,
        "function": each.function,
        "attempt": message.attempt,
        "reason": each.reason,
        "stream": message.stream,
        "stream_sequence": message.sequence,
        "subject": message.subject,
        "size_bytes": len(message.data),
    }
