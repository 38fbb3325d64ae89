"""The command line `runtime`: each command is a module of its own, imported when it is called."""

import importlib
from typing import Any

import click

from runtime.process import collector

SECTIONS = {
    "Develop": {
        "new": "Make a function or a project, with its manifest and a test.",
        "check": "Find mistakes in manifests and functions, without a server.",
        "invoke": "Call a function once, and show what it did.",
        "schema": "Print the JSON Schema of a manifest, or of a function's event.",
        "completion": "Print the script that completes names in bash, zsh or fish.",
    },
    "Serve": {
        "serve": "Serve manifests until Ctrl-C.",
        "plan": "Show how the server differs from manifests.",
        "apply": "Create and update streams and consumers, without serving.",
    },
    "Look": {
        "ls": "Show every function: backlog, load, failures, versions.",
        "top": "The same, live.",
        "logs": "Show the log lines of all hosts.",
    },
    "Act": {
        "dlq": "List, show, redrive or remove dead letters.",
        "parked": "List, run or cancel messages that wait for an attempt.",
        "replay": "Run messages of the past once more through a function.",
        "pause": "Stop the delivery of messages to functions.",
        "resume": "Deliver messages again.",
    },
    "Other programs": {
        "nats-context": "Write contexts for the nats command line.",
        "psql": "Open psql on the functions' database.",
    },
}
"""The commands, with a sentence for the list: the list then needs no command's module."""

COMMANDS = tuple(name for section in SECTIONS.values() for name in section)
_ELSEWHERE = {"resume": "pause"}


class Commands(click.Group):
    """Command group that imports only the called command: imports take half of the time."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - what a command returns
        """Import and run the called command."""
        collector.collect_rarely()
        return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order of the help."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"runtime.cli.{_ELSEWHERE.get(name, name)}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, and how to find more."""
        width = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                rows = [(f"{name:<{width}}", sentence) for name, sentence in commands.items()]
                formatter.write_dl(rows)


@click.group(
    cls=Commands,
    name="runtime",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command has its own --help. Exit codes: 0 done, 1 a server is away, 2 something"
    " must be changed first, 3 the called function failed.",
)
@click.version_option(package_name="nats-function-runtime", prog_name="runtime")
def main() -> None:
    """Run Python functions on NATS JetStream."""
