"""`runtime dlq`: lists, shows, redrives and removes dead letters."""

import functools
import sys
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, Concatenate, ParamSpec

import click
from rich.progress import Progress

from runtime.broker.connection import Broker
from runtime.broker.dead_letters import EVERY, DeadLetter, DeadLetters, Redriven, Selection
from runtime.cli import parameters
from runtime.cli.connection import nats_url_option, run
from runtime.cli.dead_letter_text import describe, describe_whole, draw, draw_table
from runtime.cli.failure import exit_with_nothing_done
from runtime.cli.printing import count, print_json, progress_bar
from runtime.errors import Unavailable

P = ParamSpec("P")

TABLE_LIMIT = 100


def _filter(
    name: str,
    metavar: str,
    sentence: str,
    convert: click.types.StringParamType | Callable[[str], object],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, metavar=metavar, help=sentence, type=convert)


def filters(command: Callable[Concatenate[Selection, P], None]) -> Callable[..., None]:
    """Add the filter options to a command, which gets them as a `Selection`."""

    @_filter("--function", "NAME", "Given up by this function.", parameters.FUNCTION_NAME)
    @_filter("--code", "CODE", "For this reason, such as MAX_DELIVERIES.", str)
    @_filter("--since", "TIME", "At this time or later: 2h (ago), 2026-08-01.", parameters.moment)
    @_filter("--until", "TIME", "Before this time.", parameters.moment)
    @_filter(
        "--subject",
        "SUBJECT",
        "First published there; may have * and >.",
        parameters.subject_pattern,
    )
    @functools.wraps(command)
    def with_selection(
        *args: Any,  # noqa: ANN401 - what click passes on
        function: str | None,
        code: str | None,
        since: datetime | None,
        until: datetime | None,
        subject: str | None,
        **kwargs: Any,  # noqa: ANN401 - what click passes on
    ) -> None:
        command(Selection(function, code, since, until, subject), *args, **kwargs)

    return with_selection


@click.group()
def dlq() -> None:
    """List and show dead letters, redrive them to the function that failed, or remove them."""


@dlq.command("ls")
@filters
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=0), help="The newest N; 0 is all. Default 100."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON object a line; all of them unless --limit is given.",
)
@nats_url_option
def list_(selection: Selection, limit: int | None, as_json: bool, nats_url: str | None) -> None:
    """List dead letters, the newest last."""
    if as_json and not limit:
        run(nats_url, lambda broker: _print_each(broker, selection))
        return
    newest = (TABLE_LIMIT if limit is None else limit) or None
    letters, total = run(nats_url, lambda broker: _read_newest(broker, selection, newest))
    if as_json:
        for letter in letters:
            print_json(describe(letter))
    elif not letters:
        click.echo("No dead letters." if selection == EVERY else "No dead letters match.")
    else:
        draw_table(letters)
        shown = f"the newest {len(letters):,} of " if len(letters) < total else ""
        more = "; --limit 0 shows all" if shown else ""
        click.echo(f"{shown}{count(total, 'dead letter')}{more}")


@dlq.command()
@click.argument("sequence", metavar="SEQ", type=parameters.SEQUENCE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--raw", is_flag=True, help="The original bytes alone, untouched.")
@nats_url_option
def show(sequence: int, as_json: bool, raw: bool, nats_url: str | None) -> None:
    """Show everything of one dead letter.

    Reason, attempts, headers, traceback and the original bytes.
    """
    if raw and as_json:
        raise click.UsageError("--raw and --json exclude each other.")
    letter = run(nats_url, lambda broker: DeadLetters(broker).get(sequence))
    if letter is None:
        exit_with_nothing_done(f"There is no dead letter {sequence}; `runtime dlq ls` lists them.")
    if raw:
        sys.stdout.buffer.write(letter.message.data)
    elif as_json:
        print_json(describe_whole(letter))
    else:
        click.echo(draw(letter))


@dlq.command()
@click.argument("sequences", nargs=-1, metavar="[SEQ]...", type=parameters.SEQUENCE)
@filters
@click.option("--all", "every", is_flag=True, help="All there are.")
@parameters.json_option
@nats_url_option
def redrive(
    selection: Selection,
    *,
    sequences: tuple[int, ...],
    every: bool,
    as_json: bool,
    nats_url: str | None,
) -> None:
    """Send dead letters again to the functions that failed.

    No other function gets them. Each message gets all its attempts anew. Running it again, also
    after it was interrupted, sends no message twice.
    """
    _check_choice(selection, sequences, every=every)
    chosen = tuple(dict.fromkeys(sequences))
    redriven = run(nats_url, lambda broker: _redrive(broker, selection, chosen))
    missing = len(chosen) - redriven.posted - len(redriven.too_large) if chosen else 0
    if as_json:
        too_large = list(redriven.too_large)
        print_json({"redriven": redriven.posted, "missing": missing, "too_large": too_large})
    if not redriven.posted and not redriven.too_large:
        exit_with_nothing_done("No dead letters match; nothing was redriven.")
    if not as_json:
        click.echo(f"{count(redriven.posted, 'dead letter')} redriven")
    if missing and not as_json:
        click.echo(f"{missing:,} of {len(chosen):,} were no longer there, or do not match")
    if redriven.too_large:
        exit_with_nothing_done(
            f"{count(len(redriven.too_large), 'dead letter')} stayed, too large to send with the "
            f"headers that tell the origin: {', '.join(map(str, redriven.too_large))}"
        )


@dlq.command()
@click.argument("sequences", nargs=-1, metavar="[SEQ]...", type=parameters.SEQUENCE)
@filters
@click.option("--all", "every", is_flag=True, help="All there are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@parameters.json_option
@nats_url_option
def purge(
    selection: Selection,
    *,
    sequences: tuple[int, ...],
    every: bool,
    yes: bool,
    as_json: bool,
    nats_url: str | None,
) -> None:
    """Remove dead letters for good. Asks first, and then removes exactly the ones it counted."""
    _check_choice(selection, sequences, every=every)
    chosen = tuple(dict.fromkeys(sequences))
    if not yes:
        letters = run(nats_url, lambda broker: _read_chosen(broker, selection, chosen))
        if letters:
            _ask(letters)
            chosen = tuple(letters)
    removed = 0
    if yes or chosen:
        removed = run(nats_url, lambda broker: _purge(broker, selection, chosen))
    if as_json:
        print_json({"removed": removed})
    if not removed:
        exit_with_nothing_done("No dead letters match; nothing was removed.")
    if not as_json:
        click.echo(f"{count(removed, 'dead letter')} removed")


def _check_choice(selection: Selection, sequences: tuple[int, ...], *, every: bool) -> None:
    chosen = bool(sequences) or selection != EVERY
    if chosen == every:
        raise click.UsageError("Say which: sequences, a filter such as --function, or --all.")


def _ask(functions: dict[int, str]) -> None:
    of_each = ", ".join(
        f"{name} {number:,}" for name, number in sorted(Counter(functions.values()).items())
    )
    question = f"Remove {count(len(functions), 'dead letter')} ({of_each}) for good?"
    click.confirm(question, abort=True, err=True)


async def _print_each(broker: Broker, selection: Selection) -> None:
    async for letter in DeadLetters(broker).list(selection):
        print_json(describe(letter))


async def _read_newest(
    broker: Broker, selection: Selection, limit: int | None
) -> tuple[list[DeadLetter], int]:
    newest: deque[DeadLetter] = deque(maxlen=limit)
    total = 0
    async for letter in DeadLetters(broker).list(selection):
        newest.append(letter)
        total += 1
    return list(newest), total


async def _read_chosen(
    broker: Broker, selection: Selection, sequences: tuple[int, ...]
) -> dict[int, str]:
    letters = DeadLetters(broker)
    chosen = letters.choose(selection, sequences)
    return {letter.sequence: letter.function async for letter in chosen}


async def _redrive(broker: Broker, selection: Selection, sequences: tuple[int, ...]) -> Redriven:
    letters = DeadLetters(broker)
    posted = 0
    with progress_bar() as bar:
        advance = await _follow(bar, "Redriving", letters, selection, sequences)

        def note(number: int) -> None:
            nonlocal posted
            posted = number
            advance(number)

        try:
            return await letters.redrive(selection, sequences=sequences, on_progress=note)
        except Unavailable as failure:
            hint = f"{failure.reason}; {posted:,} were redriven, run it again for the rest"
            raise Unavailable(failure.what, hint) from failure


async def _purge(broker: Broker, selection: Selection, sequences: tuple[int, ...]) -> int:
    letters = DeadLetters(broker)
    with progress_bar() as bar:
        advance = await _follow(bar, "Removing", letters, selection, sequences)
        return await letters.purge(selection, sequences=sequences, on_progress=advance)


async def _follow(
    bar: Progress,
    work: str,
    letters: DeadLetters,
    selection: Selection,
    sequences: tuple[int, ...],
) -> Callable[[int], None]:
    """Show progress on the bar; the total is known only when counting costs nothing."""
    total: int | None = len(sequences) or None
    if total is None and selection == Selection(function=selection.function):
        counts = await letters.counts()
        name = selection.function
        total = counts.get(name, 0) if name else sum(counts.values())
    task = bar.add_task(work, total=total)
    return lambda number: bar.update(task, completed=number)
