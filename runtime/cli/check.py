"""`runtime check`: checks manifests and loads functions without a server."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

import click

from runtime.broker.field_text import show_duration, show_size
from runtime.broker.stream_configs import ns
from runtime.cli.failure import exit_with_problems
from runtime.cli.manifests import find_shipped, takes_manifests
from runtime.cli.printing import count, print_json, printable
from runtime.cli.resolved import draw_resolved
from runtime.cli.selection import FunctionFilter, common_subject, function_filter, kind_of
from runtime.cli.table import Column, print_table
from runtime.errors import ConfigError, Problem
from runtime.loader import Function, load_all
from runtime.manifest import Manifest, read_what_is_right
from runtime.manifest.model import FunctionSpec, StreamSpec
from runtime.manifest.needs import find_missing
from runtime.process.placeholders import with_placeholders
from runtime.settings import HostSettings

_STREAM_COLUMNS = (
    Column("STREAM", least=16, is_name=True),
    Column("SUBJECTS", least=24),
    Column("KEEPS", priority=1),
    Column("CONSUMERS", priority=2, least=20),
)
_FUNCTION_COLUMNS = (
    Column("FUNCTION", least=20, is_name=True),
    Column("SHAPE", priority=1),
    Column("BOUND TO", least=24, is_name=True),
    Column("HANDLER", priority=2, least=24, is_name=True),
    Column("VERSION", priority=3),
)


@click.command()
@takes_manifests
@function_filter
@click.option(
    "--resolved", is_flag=True, help="Every value of each entry, and where it comes from, as YAML."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def check(
    manifests: tuple[Path, ...], chosen: FunctionFilter, resolved: bool, as_json: bool
) -> None:
    """Check MANIFESTS, files or folders, and load their functions.

    Nothing is started and no server is needed. Prints what would run, and which function another
    one needs that is not there. Prints every mistake and exits with 2 when there are any. The
    endpoints of a micro service are one row, unless a filter names them. On a terminal, columns
    that do not fit are left out.
    """
    try:
        manifest, functions = _check(manifests)
    except ConfigError as error:
        exit_with_problems(error)
    shown = {
        name: function
        for name, function in functions.items()
        if chosen.takes(name, kind_of(function.spec), _service_of(name, function.spec))
    }
    missing = find_missing(manifest)
    streams = {} if chosen.pattern or chosen.kind else manifest.streams
    if as_json:
        for name, spec in streams.items():
            print_json(_describe_stream(manifest, name, spec))
        for name, function in shown.items():
            print_json(_describe_function(name, function))
        for name, needed_by in missing.items():
            print_json({"missing": name, "needed_by": needed_by})
        return
    if resolved:
        click.echo(draw_resolved(manifest, streams, shown))
        return
    if streams:
        print_table(_STREAM_COLUMNS, [_draw_stream(manifest, *item) for item in streams.items()])
        click.echo()
    if shown:
        print_table(_FUNCTION_COLUMNS, list(_draw_functions(shown, folds=chosen.folds)))
        click.echo()
    for name, needed_by in missing.items():
        click.echo(_draw_missing(name, needed_by))
    click.echo(f"{count(len(manifest.streams), 'stream')}, {count(len(functions), 'function')}: OK")


def _check(paths: tuple[Path, ...]) -> tuple[Manifest, dict[str, Function]]:
    reading = read_what_is_right(paths, with_placeholders(HostSettings(), os.environ))
    problems: list[Problem] = list(reading.problems)
    functions: dict[str, Function] = {}
    try:
        functions = load_all(reading.manifest)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return reading.manifest, functions


def _durables(manifest: Manifest, stream: str, spec: StreamSpec) -> list[str]:
    bound = [
        declared.consumer.durable_of(function)
        for function, declared in manifest.functions.items()
        if declared.consumer and declared.consumer.stream == stream
    ]
    return [*spec.consumers, *bound]


def _draw_stream(manifest: Manifest, name: str, spec: StreamSpec) -> tuple[str, ...]:
    durables = " ".join(_durables(manifest, name, spec))
    return name, printable(" ".join(spec.subjects)), _show_keeping(spec), durables


def _describe_stream(manifest: Manifest, name: str, spec: StreamSpec) -> dict[str, Any]:
    return {
        "stream": name,
        "subjects": list(spec.subjects),
        "retention": spec.retention,
        "max_age_s": spec.max_age or None,
        "max_bytes": spec.max_bytes if spec.max_bytes > 0 else None,
        "consumers": _durables(manifest, name, spec),
    }


def _show_keeping(spec: StreamSpec) -> str:
    age = f", {show_duration(ns(spec.max_age))}" if spec.max_age else ""
    size = f", {show_size(spec.max_bytes)}" if spec.max_bytes > 0 else ""
    return f"{spec.retention}{age}{size}"


def _draw_functions(functions: dict[str, Function], *, folds: bool) -> Iterator[tuple[str, ...]]:
    services = Counter(
        _service_of(name, function.spec)
        for name, function in functions.items()
        if folds and function.spec.endpoint
    )
    drawn = set()
    for name, function in functions.items():
        service = _service_of(name, function.spec)
        if not function.spec.endpoint or services[service] < 2:  # noqa: PLR2004 - alone in its service
            yield _draw_function(name, function)
        elif service not in drawn:
            drawn.add(service)
            members = [
                each
                for other, each in functions.items()
                if each.spec.endpoint and _service_of(other, each.spec) == service
            ]
            yield _draw_service(service, members)


def _draw_function(name: str, function: Function) -> tuple[str, ...]:
    shape = function.shape if function.is_async else f"{function.shape}, thread"
    bound_to = printable(_show_binding(name, function.spec))
    return name, shape, bound_to, function.spec.handler, function.code_version


def _draw_service(service: str, members: list[Function]) -> tuple[str, ...]:
    subjects = [each.spec.endpoint.subject for each in members if each.spec.endpoint]
    modules = {each.spec.handler.partition(":")[0] for each in members}
    versions = {each.code_version for each in members}
    return (
        service,
        count(len(members), "endpoint"),
        printable(common_subject(subjects)),
        common_subject(modules).replace(">", "*") if len(modules) > 1 else "".join(modules),
        "".join(versions) if len(versions) == 1 else f"{len(versions)} versions",
    )


def _describe_function(name: str, function: Function) -> dict[str, Any]:
    spec = function.spec
    return {
        "function": name,
        "kind": kind_of(spec),
        "service": _service_of(name, spec),
        "shape": function.shape,
        "in_thread": not function.is_async,
        "bound_to": _show_binding(name, spec),
        "handler": spec.handler,
        "code_version": function.code_version,
        "description": function.description,
        "resolved": spec.model_dump(mode="json", exclude_none=True),
    }


def _draw_missing(name: str, needed_by: list[str]) -> str:
    shipped = find_shipped(name)
    manifest = f"--with {shipped}" if shipped else "its manifest"
    head = f"{name} is in none of these manifests. Add {manifest}, or run it on another host."
    users = wrap(f"Needed by {', '.join(needed_by)}", 76, break_long_words=False)
    return "\n".join([head, *(f"  {line}" for line in users), ""])


def _service_of(name: str, spec: FunctionSpec) -> str:
    """The micro service of an endpoint; empty for any other function."""
    return (spec.endpoint.service or name) if spec.endpoint else ""


def _show_binding(name: str, spec: FunctionSpec) -> str:
    if spec.consumer:
        return f"{spec.consumer.stream}/{spec.consumer.durable_of(name)}"
    if spec.endpoint:
        http = spec.endpoint.http
        return (
            f"{spec.endpoint.subject} ({http.method} {http.path})"
            if http
            else (spec.endpoint.subject)
        )
    if spec.schedule:
        every, cron = spec.schedule.every, spec.schedule.cron
        if every is not None:
            return f"every {show_duration(ns(every))}"
        return f"{cron} {spec.schedule.timezone}"
    return "its own lifetime"
