"""`runtime schema`: prints JSON Schemas: of a manifest, or of what a function takes and gives."""

import json
from pathlib import Path
from typing import Any, Literal, get_args

import click
from pydantic import BaseModel

from runtime.cli import parameters
from runtime.cli.failure import exit_with_problems
from runtime.cli.one_function import load_function, read_settings, takes_manifest_options
from runtime.errors import ConfigError, Problem
from runtime.loader import Function
from runtime.manifest.schema import draw_manifest_schema

Part = Literal["event", "reply", "settings"]


@click.command()
@click.argument("name", required=False, metavar="[NAME]", type=parameters.LOCAL_FUNCTION_NAME)
@click.option(
    "--of",
    "part",
    type=click.Choice(get_args(Part)),
    help="Of the function NAME: its event, an endpoint's reply, its settings. Default: event.",
)
@takes_manifest_options
def schema(*, name: str | None, part: Part | None, manifests: tuple[Path, ...]) -> None:
    """Print the JSON Schema of a manifest, for completion and checks in an editor.

    With NAME that of the event that this function takes, as its annotation says.
    """
    if name is None:
        if part is not None:
            raise click.UsageError("--of needs the NAME of a function.")
        found: dict[str, Any] | None = draw_manifest_schema()
    else:
        try:
            function, _ = load_function(name, manifests, read_settings(), {})
            found = _schema_of(function, part or "event")
        except ConfigError as error:
            exit_with_problems(error)
    click.echo(json.dumps(found, indent=2))


def _schema_of(function: Function, part: Part) -> dict[str, Any]:
    """The schema.

    Raises:
        ConfigError: the function has none.
    """
    found, wrong = {
        "event": (function.request_schema, "it takes no event, or raw bytes"),
        "reply": (function.response_schema, "it gives no reply, or one of any form"),
        "settings": (_settings_schema(function.settings), "its module has no Settings"),
    }[part]
    if found is None:
        remedy = f"name a function that has a schema of its {part}"
        raise ConfigError([Problem(f"function {function.name}", "", wrong, remedy)])
    return found


def _settings_schema(settings: object) -> dict[str, Any] | None:
    return type(settings).model_json_schema() if isinstance(settings, BaseModel) else None
