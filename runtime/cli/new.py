"""`runtime new`: makes the files of a function or a project."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from runtime.cli.failure import exit_with_problems
from runtime.cli.printing import print_json
from runtime.errors import ConfigError
from runtime.manifest.values import NAME_PATTERN
from runtime.process.placeholders import with_placeholders
from runtime.scaffold.function import FunctionKind, Wishes, make_function
from runtime.scaffold.names import LONGEST
from runtime.scaffold.project import make_project
from runtime.settings import HostSettings

_SUBJECT = re.compile(r"[\w-]+(\.[\w-]+|\.\*)*(\.>)?", re.ASCII)
_LONGEST = 60

name_argument = click.argument("name", metavar="NAME")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


def _subject(text: str) -> str:
    # It is written into a docstring and into YAML, so it has nothing to escape.
    if not _SUBJECT.fullmatch(text) or len(text) > _LONGEST:
        raise click.BadParameter(f"{text!a} is not a subject of words, *, and > at the end")
    return text


def _stream(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text) or len(text) > LONGEST:
        raise click.BadParameter(f"{text!a} cannot be a stream's name")
    return text


stream_option = click.option(
    "--stream",
    metavar="STREAM",
    type=_stream,
    help="Made with the function unless a manifest has it. Default: NAME in upper case.",
)
subject_option = click.option(
    "--subject",
    metavar="SUBJECT",
    type=_subject,
    help="Default: NAME.> of a new stream, and every subject of a stream that a manifest has.",
)


@click.group()
def new() -> None:
    """Make a function, or a project, with its manifest and a test.

    A function is made in the current folder: functions/NAME.py, manifests/NAME.yaml and
    tests/test_NAME.py. No file is overwritten.
    """


@new.command()
@name_argument
@stream_option
@subject_option
@json_option
def consumer(name: str, stream: str | None, subject: str | None, as_json: bool) -> None:
    """Make a function for the messages of a stream, one at a time."""
    _make("consumer", name, Wishes(stream, subject), as_json=as_json)


@new.command()
@name_argument
@stream_option
@subject_option
@json_option
def batch(name: str, stream: str | None, subject: str | None, as_json: bool) -> None:
    """Make a function for the messages of a stream, many in one call."""
    _make("batch", name, Wishes(stream, subject), as_json=as_json)


@new.command()
@name_argument
@click.option(
    "--subject",
    metavar="SUBJECT",
    type=_subject,
    help="Of the requests. Default: NAME.ask.",
)
@json_option
def endpoint(name: str, subject: str | None, as_json: bool) -> None:
    """Make a function that answers requests, by NATS and by HTTP."""
    _make("endpoint", name, Wishes(subject=subject), as_json=as_json)


@new.command()
@name_argument
@click.option("--every", metavar="DURATION", help="10s, 5m, 1h. Default: 1m.")
@click.option("--cron", metavar="EXPRESSION", help="As in a crontab: '0 6 * * 1-5'.")
@json_option
def schedule(name: str, every: str | None, cron: str | None, as_json: bool) -> None:
    """Make a function that runs by interval or cron expression."""
    if every and cron:
        raise click.UsageError("--every and --cron exclude each other.")
    _make("schedule", name, Wishes(every=every, cron=cron), as_json=as_json)


@new.command()
@name_argument
@json_option
def service(name: str, as_json: bool) -> None:
    """Make a function that runs for as long as the host does."""
    _make("service", name, Wishes(), as_json=as_json)


@new.command()
@name_argument
@json_option
def route(name: str, as_json: bool) -> None:
    """Make a function that delivers jobs of a route type."""
    _make("route", name, Wishes(), as_json=as_json)


@new.command()
@name_argument
@json_option
def project(name: str, as_json: bool) -> None:
    """Make the folder NAME with a project of one function."""
    made = _checked(lambda: make_project(Path(), name))
    steps = [f"cd {name}", "make test", "make dev"]
    _report("project", name, [f"{name}/{each}" for each in made], steps, as_json=as_json)


def _make(kind: FunctionKind, name: str, wishes: Wishes, *, as_json: bool) -> None:
    environment = with_placeholders(HostSettings(), os.environ)
    made = _checked(lambda: make_function(Path(), kind, name, wishes, environment=environment))
    serve = "runtime serve manifests/ --reload"
    if kind == "route":
        serve = f"{serve} --with routes"
    steps = [f"python -m pytest tests/test_{name}.py", serve]
    _report(kind, name, made, steps, as_json=as_json)


def _checked(make: Callable[[], list[str]]) -> list[str]:
    try:
        return make()
    except ConfigError as error:
        exit_with_problems(error)


def _report(
    kind: str, name: str, made: Sequence[str], steps: Sequence[str], *, as_json: bool
) -> None:
    if as_json:
        print_json({"kind": kind, "name": name, "files": made, "next": steps})
        return
    for file in made:
        click.echo(f"made {file}")
    click.echo("Next:")
    for step in steps:
        click.echo(f"  {step}")
