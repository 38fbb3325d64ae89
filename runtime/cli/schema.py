"""`runtime schema`: prints a manifest's JSON Schema, for editors."""

import json

import click

from runtime.manifest.schema import draw_manifest_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of a manifest, for completion and checks in an editor."""
    click.echo(json.dumps(draw_manifest_schema(), indent=2))
