"""`runtime invoke`: calls one function once, in this process or on a running host."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import click

from runtime.broker.connection import Broker
from runtime.cli import parameters
from runtime.cli.connection import find_server, nats_url_option, run
from runtime.cli.failure import ExitCode, exit_with_problems
from runtime.cli.invocation import Wanted, make_messages, read_stored
from runtime.cli.invocation_text import (
    describe,
    describe_remote,
    draw,
    draw_remote,
    has_failed,
)
from runtime.cli.one_function import (
    check_database,
    find_database_url,
    live_variables,
    load_function,
    read_settings,
    takes_manifest_options,
)
from runtime.cli.printing import print_json
from runtime.cli.remote_call import RemoteResult, call_remotely
from runtime.errors import ConfigError
from runtime.loader import Function
from runtime.local.live_function import open_resources
from runtime.local.local_call import LocalFunction, LocalResult
from runtime.local.recorded_effects import RecordedEffects
from runtime.message import Message
from runtime.observe.logs import configure_logs
from runtime.process.event_loop import run as run_alone
from runtime.resource.shared import SharedResources


@click.command()
@click.argument("name", metavar="NAME", type=parameters.LOCAL_FUNCTION_NAME)
@click.option(
    "--data",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="The payload. Repeated: the messages of a batch function.",
)
@click.option("--file", metavar="PATH", type=click.File("rb"), help="The payload; - is stdin.")
@click.option(
    "--from-stream",
    "stored",
    metavar="STREAM:SEQ",
    type=parameters.stored_message,
    help="A stored message, with its headers and identity.",
)
@click.option(
    "--from-dlq",
    "letter",
    metavar="SEQ",
    type=parameters.SEQUENCE,
    help="The message of a dead letter, which stays where it is.",
)
@click.option("--subject", metavar="SUBJECT", type=parameters.plain_subject, help="Of --data.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME:VALUE",
    type=parameters.header,
    help="A header beside --data; may be repeated.",
)
@click.option("--live", is_flag=True, help="Send what the function sends, use its resources.")
@click.option("--remote", is_flag=True, help="On a running host instead of in this process.")
@click.option(
    "--timeout",
    default="10s",
    show_default=True,
    metavar="DURATION",
    type=parameters.span,
    help="How long --remote waits for the outcome.",
)
@takes_manifest_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@nats_url_option
def invoke(
    *,
    name: str,
    texts: tuple[str, ...],
    file: BinaryIO | None,
    stored: tuple[str, int] | None,
    letter: int | None,
    subject: str | None,
    headers: tuple[tuple[str, str], ...],
    live: bool,
    remote: bool,
    timeout: timedelta,
    manifests: tuple[Path, ...],
    as_json: bool,
    nats_url: str | None,
) -> None:
    """Call the function NAME once, with one event, and show what it did.

    The code and manifest of the current folder are called in this process, as a host would call
    them: it shows how the message would be settled, the reply, the log, the time and what was
    published. Nothing is sent and nothing is settled; --live sends. No server is needed, unless an
    option needs one. Exits with 3 when the function failed.

    --remote asks an endpoint, or puts the message into the mailbox of a running consumer or
    schedule, and waits for the outcome.
    """
    given = [bool(texts), file is not None, stored is not None, letter is not None]
    if sum(given) > 1:
        raise click.UsageError("Give one of --data, --file, --from-stream and --from-dlq.")
    if remote and live:
        raise click.UsageError("--live has no effect with --remote, where all effects are real.")
    payloads = tuple(text.encode() for text in texts) or ((file.read(),) if file else (b"",))
    wanted = Wanted(payloads, subject, headers, stored, letter)
    if remote:
        limit_s = timeout.total_seconds()
        done = run(nats_url, lambda broker: call_remotely(broker, name, wanted, limit_s))
        _report_remote(name, done, as_json=as_json)
    else:
        local = _call_here(name, wanted, manifests, nats_url, live=live)
        _report(local, live=live, as_json=as_json)


def _call_here(
    name: str, wanted: Wanted, manifests: tuple[Path, ...], nats_url: str | None, *, live: bool
) -> LocalResult:
    settings = read_settings()
    variables, database_url = {}, None
    try:
        if live:
            variables = live_variables(settings, find_server(nats_url).url)
            database_url = find_database_url(settings)
        function, manifest = load_function(name, manifests, settings, variables)
        if live:
            check_database(function, database_url)
        if not live and not wanted.is_stored:
            configure_logs("ERROR")
            return run_alone(_call(function, make_messages(wanted, function, manifest)))
    except ConfigError as error:
        exit_with_problems(_with_way_out(error))

    async def call(broker: Broker) -> LocalResult:
        if wanted.is_stored:
            messages: Sequence[Message] = [await read_stored(broker, wanted)]
        else:
            messages = make_messages(wanted, function, manifest)
        if not live:
            return await _call(function, messages)
        limit = settings.postgres_connections
        async with open_resources(function, database_url, limit) as resources:
            return await _call(function, messages, RecordedEffects(live=broker), resources)

    return run(nats_url, call)


async def _call(
    function: Function,
    messages: Sequence[Message],
    effects: RecordedEffects | None = None,
    resources: SharedResources | None = None,
) -> LocalResult:
    given = resources.of(function) if resources else None
    try:
        async with LocalFunction(function, effects=effects, resources=given) as local:
            return await local.call(*messages)
    except ConfigError as error:
        raise _with_way_out(error) from error


def _with_way_out(error: ConfigError) -> ConfigError:
    """The error, with what a user of the command can do when a resource is not given."""
    remedy = "its effects cannot be recorded: --live calls it with the real one"
    return ConfigError(
        [
            replace(each, remedy=remedy) if "was given none" in each.wrong else each
            for each in error.problems
        ]
    )


def _report(result: LocalResult, *, live: bool, as_json: bool) -> None:
    if as_json:
        print_json(describe(result, live=live))
    else:
        click.echo(draw(result, live=live))
    if has_failed(result):
        raise SystemExit(ExitCode.FAILED)


def _report_remote(name: str, result: RemoteResult, *, as_json: bool) -> None:
    if as_json:
        print_json(describe_remote(result))
    else:
        click.echo(draw_remote(name, result))
    if result.is_waiting:
        raise SystemExit(ExitCode.UNAVAILABLE)
    if not result.is_done:
        raise SystemExit(ExitCode.FAILED)
