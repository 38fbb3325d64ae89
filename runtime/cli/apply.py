"""`runtime apply`: creates and updates streams and consumers without serving."""

from pathlib import Path

import click

from runtime.broker.connection import Broker
from runtime.broker.drift import Change
from runtime.broker.streams import ensure
from runtime.broker.streams import plan as find_changes
from runtime.cli.changes import NO_CHANGES, describe, draw, read_manifest
from runtime.cli.connection import nats_url_option, run, show_server
from runtime.cli.manifests import takes_manifests
from runtime.cli.parameters import json_option
from runtime.cli.printing import count, print_json
from runtime.manifest import Manifest


@click.command()
@takes_manifests
@click.option("--allow-loss", is_flag=True, help="Make changes that lose messages too.")
@json_option
@nats_url_option
def apply(
    *, manifests: tuple[Path, ...], allow_loss: bool, as_json: bool, nats_url: str | None
) -> None:
    """Create the streams and consumers that MANIFESTS, files or folders, declare.

    Missing ones are created, different ones are updated in place. Nothing is changed, and the exit
    code is 2, when JetStream cannot change a field in place or a change would lose messages.
    Streams and consumers that no manifest names are not changed.
    """
    manifest = read_manifest(manifests)
    changes = run(nats_url, lambda broker: find_changes(broker, manifest))
    if not changes:
        if not as_json:
            click.echo(NO_CHANGES)
        return
    if not as_json:
        click.echo(draw(changes))
    made = run(nats_url, lambda broker: _apply(broker, manifest, allow_loss=allow_loss))
    if as_json:
        for change in made:
            print_json(describe(change))
        return
    click.echo(f"{count(len(made), 'change')} made on {show_server(nats_url)}")


async def _apply(broker: Broker, manifest: Manifest, *, allow_loss: bool) -> list[Change]:
    return await ensure(broker, manifest, allow_loss=allow_loss)
