"""`runtime nats-context`: writes contexts for the official `nats` command line."""

import json
import os
from pathlib import Path

import click

from runtime.cli.failure import exit_with_problems
from runtime.cli.parameters import json_option
from runtime.cli.printing import print_json
from runtime.embedded.credentials import HOST_USER, NATS_PASSWORD_FILE, SYSTEM_USER, read_secret
from runtime.embedded.private_files import write_private
from runtime.errors import ConfigError, Problem
from runtime.settings import HostSettings
from runtime.subjects import HOST_INBOX


@click.command("nats-context")
@click.option(
    "--name",
    default="runtime",
    show_default=True,
    metavar="NAME",
    help="Of the context for messages; that for the server gets -system behind it.",
)
@json_option
def nats_context(name: str, as_json: bool) -> None:
    """Write two contexts for the `nats` command line, with the password of the embedded server.

    One is for messages, streams and consumers, the runtime's own included; the other is for the
    server's own reports. `nats` reads them from $XDG_CONFIG_HOME/nats/context.
    """
    try:
        settings = HostSettings.from_environment(os.environ)
        password = _find_password(settings)
        folder = _context_folder()
        url = f"nats://127.0.0.1:{settings.nats_port}"
        _write(folder, name, url, HOST_USER, password)
        _write(folder, f"{name}-system", url, SYSTEM_USER, password)
    except ConfigError as error:
        exit_with_problems(error)
    if as_json:
        print_json({"folder": str(folder), "contexts": [name, f"{name}-system"]})
        return
    click.echo(f"Contexts {name} and {name}-system are in {folder}. Try:")
    click.echo(f"  nats --context {name} stream report")
    click.echo(f"  nats --context {name}-system server report jetstream")
    click.echo(f"`nats context select {name}` makes the first one the default.")


def _find_password(settings: HostSettings) -> str:
    path = settings.data_dir / NATS_PASSWORD_FILE
    if settings.nats_url is not None:
        wrong, remedy = "names a server that is not embedded", "use `nats context save`"
        raise ConfigError([Problem("NATS_URL", "", wrong, remedy)])
    password = read_secret(path)
    if password is None:
        wrong = "there is no password of an embedded server"
        remedy = "run this where `runtime serve` runs and as its user, or set RUNTIME_DATA_DIR"
        raise ConfigError([Problem(str(path), "", wrong, remedy)])
    return password


def _context_folder() -> Path:
    """The folder of the contexts of `nats`. Source: natscli, `jsm.go/natscontext`."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "nats" / "context"


def _write(folder: Path, name: str, url: str, user: str, password: str) -> None:
    context = {
        "description": "written by `runtime nats-context`",
        "url": url,
        "user": user,
        "password": password,
        "inbox_prefix": HOST_INBOX if user == HOST_USER else "",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(folder / f"{name}.json", json.dumps(context, indent=2) + "\n")
    except OSError as failure:
        wrong = f"cannot be written ({failure.strerror or failure})"
        remedy = "make it writable, or set XDG_CONFIG_HOME"
        raise ConfigError([Problem(str(folder), "", wrong, remedy)]) from failure
