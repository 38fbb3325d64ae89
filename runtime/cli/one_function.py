"""Finds and loads the one function that a developer's command names."""

import os
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from runtime.cli.failure import exit_with_problems
from runtime.cli.manifests import shipped_manifests, takes_shipped
from runtime.cli.psql import find_database, with_password
from runtime.embedded.credentials import SECRETS_KEY_FILE, read_secret
from runtime.errors import ConfigError, Problem
from runtime.loader import Function, load_all
from runtime.manifest import Manifest, read
from runtime.manifest.translation import suggest
from runtime.process.placeholders import with_placeholders
from runtime.settings import SECRETS_KEYS, HostSettings

DEFAULT = Path("manifests")


def takes_manifest_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--manifest` and `--with` to a command, which gets the paths as `manifests`."""

    @click.option(
        "--manifest",
        "-m",
        "own",
        multiple=True,
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="A manifest, or a folder of them; may be repeated. Default: manifests/.",
    )
    @takes_shipped("Add a shipped manifest, as with `runtime serve`.")
    @wraps(command)
    def combined(own: tuple[Path, ...], shipped: tuple[str, ...], **options: Any) -> None:  # noqa: ANN401 - what click passes on
        paths = own or (() if shipped and not DEFAULT.exists() else (DEFAULT,))
        command(manifests=(*paths, *shipped_manifests(shipped)), **options)

    return combined


def load_function(
    name: str, paths: tuple[Path, ...], settings: HostSettings, live: Mapping[str, str]
) -> tuple[Function, Manifest]:
    """Load the function NAME of these manifests; return it with the whole manifest.

    Args:
        name: the function's.
        paths: manifests and folders.
        settings: the host's settings.
        live: variables that a host would add to the environment, as far as they are known.

    Raises:
        ConfigError: no manifest has the function, or it cannot be loaded.
    """
    manifest = read(paths, with_placeholders(settings, os.environ, live))
    if name not in manifest.functions:
        shown = ", ".join(map(str, paths))
        wrong = f"no manifest in {shown} has it"
        raise ConfigError([Problem(f"function {name}", "", wrong, _remedy(name, manifest))])
    chosen = manifest.model_copy(update={"functions": {name: manifest.functions[name]}})
    return load_all(chosen.placed_at(manifest.positions))[name], manifest


def _remedy(name: str, manifest: Manifest) -> str:
    if not manifest.functions:
        return "name another manifest with --manifest"
    return suggest(name, manifest.functions)


def read_settings() -> HostSettings:
    """The host's settings; mistakes end the process."""
    try:
        return HostSettings.from_environment(os.environ)
    except ConfigError as error:
        exit_with_problems(error)


_FILES = {
    "ADMIN_KEY": "admin.key",
    "MQTT_ADMIN_PASSWORD": "mqtt.password",
    SECRETS_KEYS: SECRETS_KEY_FILE,
}


def live_variables(settings: HostSettings, nats_url: str) -> dict[str, str]:
    """The variables that a host on these servers adds to the manifests' environment."""
    found = {"NATS_URL": nats_url}
    if (url := find_database_url(settings)) is not None:
        found["DATABASE_URL"] = url
    for variable, file in _FILES.items():
        if secret := read_secret(settings.data_dir / file):
            found[variable] = secret
    return found


def find_database_url(settings: HostSettings) -> str | None:
    """PostgreSQL's address, password included; None when none runs."""
    try:
        return with_password(*find_database(settings))
    except ConfigError:
        return None


def check_database(function: Function, database_url: str | None) -> None:
    """Refuse a function that uses PostgreSQL when none runs.

    Raises:
        ConfigError: says how to name one.
    """
    if "postgres" in function.spec.uses and database_url is None:
        wrong = "it uses postgres, and no PostgreSQL runs here"
        remedy = "start `runtime serve`, or set DATABASE_URL"
        raise ConfigError([Problem(f"function {function.name}", "uses", wrong, remedy)])
