"""`runtime plan`: lists what would change on the server, and changes nothing."""

from pathlib import Path

import click

from runtime.broker.streams import plan as find_changes
from runtime.cli.changes import NO_CHANGES, describe, draw, read_manifest, summarize
from runtime.cli.connection import nats_url_option, run
from runtime.cli.failure import ExitCode
from runtime.cli.manifests import takes_manifests
from runtime.cli.printing import print_json


@click.command()
@takes_manifests
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, none if no changes.")
@nats_url_option
def plan(manifests: tuple[Path, ...], as_json: bool, nats_url: str | None) -> None:
    """Show how the server differs from MANIFESTS, files or folders. Changes nothing.

    Exits with 0 when `runtime serve` and `runtime apply` would make the changes, and with 2 when
    they would refuse: a field that JetStream cannot change in place, a change that loses messages.
    """
    manifest = read_manifest(manifests)
    changes = run(nats_url, lambda broker: find_changes(broker, manifest))
    if as_json:
        for change in changes:
            print_json(describe(change))
    elif changes:
        click.echo(draw(changes))
        click.echo(summarize(changes))
    else:
        click.echo(NO_CHANGES)
    if any(change.kind in ("immutable", "destructive") for change in changes):
        raise SystemExit(ExitCode.REFUSED)
