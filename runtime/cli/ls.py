"""`runtime ls`: lists every function with its state on the server and on the hosts."""

import sys

import click

from runtime.cli.connection import nats_url_option, run
from runtime.cli.function_table import draw_functions, notes_on
from runtime.cli.function_views import find_functions
from runtime.cli.printing import print_json, wrapped
from runtime.cli.selection import FunctionFilter, function_filter


@click.command()
@function_filter
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each function, a line.")
@nats_url_option
def ls(chosen: FunctionFilter, as_json: bool, nats_url: str | None) -> None:
    """Show every function: its backlog, load and failures, and the instances of each version.

    MSG/S, ERRORS (the share of attempts that failed), P50 and P99 (time of the handler) are those
    of the last ten seconds, on all hosts together. INSTANCES counts processes, a worker each. A
    function that has consumers but no instance is not running anywhere. The endpoints of a micro
    service are one row, unless a filter names them. On a terminal, columns that do not fit are left
    out.
    """
    every = run(nats_url, find_functions)
    views = [view for view in every if chosen.takes(view.function, view.kind, view.service)]
    if as_json:
        for view in views:
            print_json(view.as_document())
    elif not every:
        click.echo("No functions: no host runs, and none ever bound one on this server.")
    elif not views:
        click.echo("No functions match.")
    else:
        draw_functions(views, folds=chosen.folds)
        for note in notes_on(views):
            click.echo(wrapped(note, sys.stdout))
