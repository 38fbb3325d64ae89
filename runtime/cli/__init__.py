"""The command line `runtime`: each command is a module of its own, imported when it is called."""

import importlib

import click

COMMANDS = (
    "apply",
    "check",
    "completion",
    "dlq",
    "invoke",
    "logs",
    "ls",
    "nats-context",
    "new",
    "parked",
    "pause",
    "plan",
    "psql",
    "replay",
    "resume",
    "schema",
    "serve",
    "top",
)
_ELSEWHERE = {"resume": "pause"}


class Commands(click.Group):
    """Command group that imports only the called command: imports take half of the time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, for the help."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"runtime.cli.{_ELSEWHERE.get(name, name)}")
        command: click.Command = getattr(module, name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nats-function-runtime", prog_name="runtime")
def main() -> None:
    """Run Python functions on NATS JetStream."""
