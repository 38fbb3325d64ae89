"""`runtime replay`: runs messages of the past once more through one function."""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import click

from runtime.broker.connection import Broker
from runtime.broker.history import Found, History, Span
from runtime.cli import parameters
from runtime.cli.connection import find_server, nats_url_option, run
from runtime.cli.failure import ExitCode, exit_with_problems
from runtime.cli.one_function import (
    check_database,
    find_database_url,
    live_variables,
    load_function,
    read_settings,
    takes_manifest_options,
)
from runtime.cli.printing import count, print_json, printable, progress_bar, show_time, wrapped
from runtime.cli.table import Column, print_table
from runtime.errors import ConfigError, Problem
from runtime.loader import Function
from runtime.local.live_function import open_dispatcher, open_resources, servers_answer
from runtime.local.replay import Failure, Replay, Tally
from runtime.manifest.model import RateSpec
from runtime.queueing.token_bucket import token_bucket_of
from runtime.settings import HostSettings

SHOWN_FAILURES = 100

_COLUMNS = (
    Column("SEQ", is_number=True),
    Column("CODE", least=16),
    Column("ATTEMPTS", priority=2, is_number=True),
    Column("SUBJECT", priority=3, least=16),
    Column("AT", priority=4, is_name=True),
    Column("REASON", priority=1, least=28),
)


@click.command()
@click.argument("name", metavar="NAME", type=parameters.LOCAL_FUNCTION_NAME)
@takes_manifest_options
@click.option(
    "--from",
    "first",
    required=True,
    metavar="TIME|SEQ",
    type=parameters.place,
    help="The first message: a sequence, an age such as 2h, or 2026-08-01T12:00:00Z.",
)
@click.option(
    "--until",
    metavar="TIME|SEQ",
    type=parameters.place,
    help="The last sequence, or the time to end before. Default: the stream's end.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many messages there are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--rate", metavar="N/s", type=parameters.rate, help="In place of the rate of the manifest."
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object a line: failures, then sums."
)
@nats_url_option
def replay(
    *,
    name: str,
    manifests: tuple[Path, ...],
    first: int | datetime,
    until: int | datetime | None,
    dry_run: bool,
    yes: bool,
    rate: RateSpec | None,
    as_json: bool,
    nats_url: str | None,
) -> None:
    """Run messages of the past once more through the function NAME, in this process.

    The code and manifest are those of the current folder. The function's effects are real. The
    messages stay in their stream, and the function's own consumer is not changed. A message that
    fails is tried again as the manifest says, at most 5 s later; one that is given up is listed,
    and makes no dead letter. Says first how many messages there are, and asks. Ctrl-C ends after
    the calls under way, and says where to go on. Exits with 3 when a message failed.
    """
    settings = read_settings()
    url = find_server(nats_url).url
    try:
        function, _ = load_function(name, manifests, settings, live_variables(settings, url))
        span = _span(function, first, until)
        database_url = find_database_url(settings)
        check_database(function, database_url)
    except ConfigError as error:
        exit_with_problems(error)
    found = run(nats_url, lambda broker: History(broker).find(span))
    sentence = _announce(found)
    if not found.count or dry_run:
        _report_count(found, sentence, as_json=as_json)
        return
    if not yes:
        click.confirm(f"{sentence}\nReplay through {name}, with its effects?", abort=True, err=True)
    plan = _Plan(function, found, settings, database_url, rate)
    log_level = settings.log_level if "log_level" in settings.model_fields_set else "WARNING"
    ended = run(nats_url, lambda broker: _replay(broker, plan), log_level=log_level)
    _report(ended, found, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Plan:
    function: Function
    found: Found
    settings: HostSettings
    database_url: str | None
    rate: RateSpec | None


@dataclass(frozen=True, slots=True)
class _Ended:
    tally: Tally
    next_sequence: int
    was_stopped: bool


def _span(function: Function, first: int | datetime, until: int | datetime | None) -> Span:
    bound = function.spec.consumer
    if bound is None:
        wrong = "only a function with a consumer has messages of the past"
        remedy = "`runtime invoke` calls any function once"
        raise ConfigError([Problem(f"function {function.name}", "", wrong, remedy)])
    return Span(bound.stream, bound.filter_subjects, first, until)


def _announce(found: Found) -> str:
    span = found.span
    begins = _show(span.first)
    ends = _show(found.last if span.until is None else span.until)
    sentence = f"{count(found.count, 'message')} of {span.stream}, from {begins} to {ends}."
    if isinstance(span.first, int) and found.oldest > 1 and span.first < found.oldest:
        sentence += f" The stream begins at {_show(found.oldest)}: what was before is gone."
    return sentence


def _show(place: int | datetime) -> str:
    return f"sequence {place:,}" if isinstance(place, int) else show_time(place)


def _report_count(found: Found, sentence: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"stream": found.span.stream, "messages": found.count, "last": found.last})
    else:
        click.echo(wrapped(sentence, sys.stdout))


async def _replay(broker: Broker, plan: _Plan) -> _Ended:
    function, connections = plan.function, plan.settings.postgres_connections
    async with (
        open_resources(function, plan.database_url, connections) as resources,
        open_dispatcher(function, broker, resources) as dispatcher,
    ):
        with progress_bar() as bar:
            task = bar.add_task("Replaying", total=plan.found.count)
            limit = plan.rate or function.spec.rate
            time = asyncio.get_running_loop().time
            work = Replay(
                dispatcher,
                bucket=token_bucket_of(limit, 1, time) if limit else None,
                servers_answer=lambda: servers_answer(broker, resources),
                on_change=lambda tally: bar.update(task, completed=tally.settled),
            )
            was_stopped = _stop_at_ctrl_c(work)
            async with aclosing(History(broker).read(plan.found)) as messages:
                tally = await work.run(messages)
        return _Ended(tally, work.next_sequence, was_stopped())


def _stop_at_ctrl_c(work: Replay) -> Callable[[], bool]:
    """End the replay at the first Ctrl-C; a second one ends the process."""
    stopped: list[bool] = []
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopped.append(True)
        work.stop()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, stop)
    return lambda: bool(stopped)


def _report(ended: _Ended, found: Found, *, as_json: bool) -> None:
    tally = ended.tally
    if as_json:
        for failure in tally.failures:
            print_json(asdict(failure))
        print_json(_describe(ended, found))
    else:
        if tally.failures:
            _draw(tally.failures[:SHOWN_FAILURES])
        click.echo(_sum(tally, found))
    if ended.was_stopped:
        first = found.span.first
        begin = first if isinstance(first, int) else first.isoformat()
        line = f"Stopped. Go on with --from {ended.next_sequence or begin}"
        click.echo(line, err=True)
        raise SystemExit(ExitCode.UNAVAILABLE)
    if tally.failed:
        raise SystemExit(ExitCode.FAILED)


def _sum(tally: Tally, found: Found) -> str:
    parts = [f"{count(tally.settled, 'message')} of {found.count:,} replayed"]
    parts.append(f"{tally.done:,} done, {tally.failed:,} failed")
    if tally.failed > SHOWN_FAILURES:
        parts.append(f"the first {SHOWN_FAILURES} are shown, --json has more")
    if tally.retried:
        parts.append(f"{tally.retried:,} attempts more than one each")
    return "; ".join(parts)


def _describe(ended: _Ended, found: Found) -> dict[str, object]:
    tally = ended.tally
    return {
        "stream": found.span.stream,
        "messages": found.count,
        "done": tally.done,
        "failed": tally.failed,
        "retried": tally.retried,
        "next_sequence": ended.next_sequence if ended.was_stopped else None,
    }


def _draw(failures: list[Failure]) -> None:
    print_table(
        _COLUMNS,
        [
            (
                str(each.sequence),
                printable(each.code),
                str(each.attempts),
                printable(each.subject),
                each.where,
                printable(each.reason),
            )
            for each in failures
        ],
    )
