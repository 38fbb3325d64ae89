"""The command line: arguments in, exit code out. Each command stands in a module of its own."""

import click

from runtime.cli.apply import apply
from runtime.cli.check import check
from runtime.cli.dlq import dlq
from runtime.cli.ls import ls
from runtime.cli.parked import parked
from runtime.cli.pause import pause, resume
from runtime.cli.plan import plan
from runtime.cli.schema import schema
from runtime.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nats-function-runtime", prog_name="runtime")
def main() -> None:
    """Run Python functions on NATS JetStream."""


for command in (apply, check, dlq, ls, parked, pause, plan, resume, schema, serve):
    main.add_command(command)
