"""`runtime check`: everything that can be known without a server."""

import os
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from runtime.cli.failure import exit_with_problems
from runtime.cli.manifests import takes_manifests
from runtime.cli.printing import count
from runtime.errors import ConfigError, Problem
from runtime.lifecycle import placeholders
from runtime.loader import Function, load_all
from runtime.manifest import Manifest, read_what_is_right
from runtime.manifest.model import FunctionSpec, StreamSpec
from runtime.settings import HostSettings


@click.command()
@takes_manifests
def check(manifests: tuple[Path, ...]) -> None:
    """Check MANIFESTS, files or folders, and load their functions.

    Nothing is started and no server is asked. Prints what would run; exits with 2 when there are
    mistakes, after printing every one of them.
    """
    try:
        manifest, functions = _check(manifests)
    except ConfigError as error:
        exit_with_problems(error)
    console = Console(markup=False)
    if manifest.streams:
        console.print(_draw_streams(manifest))
    if functions:
        console.print(_draw_functions(functions))
    console.print(
        f"{count(len(manifest.streams), 'stream')}, {count(len(functions), 'function')}: OK"
    )


def _check(paths: tuple[Path, ...]) -> tuple[Manifest, dict[str, Function]]:
    reading = read_what_is_right(paths, {**placeholders(HostSettings()), **os.environ})
    problems: list[Problem] = list(reading.problems)
    functions: dict[str, Function] = {}
    try:
        functions = load_all(reading.manifest)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return reading.manifest, functions


def _draw_streams(manifest: Manifest) -> Table:
    table = Table("STREAM", "SUBJECTS", "KEEPS", "CONSUMERS", box=box.SIMPLE_HEAD)
    for name, spec in manifest.streams.items():
        durables = [*spec.consumers]
        for function, declared in manifest.functions.items():
            if declared.consumer and declared.consumer.stream == name:
                durables.append(declared.consumer.durable_of(function))
        table.add_row(name, " ".join(spec.subjects), _show_keeping(spec), " ".join(durables))
    return table


def _show_keeping(spec: StreamSpec) -> str:
    age = f", {spec.max_age / 3600:g}h" if spec.max_age else ""
    size = f", {spec.max_bytes / 1e9:g}GB" if spec.max_bytes > 0 else ""
    return f"{spec.retention}{age}{size}"


def _draw_functions(functions: dict[str, Function]) -> Table:
    table = Table("FUNCTION", "SHAPE", "BOUND TO", "HANDLER", "VERSION", box=box.SIMPLE_HEAD)
    for name, function in functions.items():
        shape = function.shape if function.is_async else f"{function.shape}, thread"
        table.add_row(
            name,
            shape,
            _show_binding(name, function.spec),
            function.spec.handler,
            function.code_version,
        )
    return table


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
        return f"every {every:g}s" if every is not None else f"{cron} {spec.schedule.timezone}"
    return "its own lifetime"
