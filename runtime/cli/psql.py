"""`runtime psql`: opens psql on the functions' database."""

import os
import shutil
from pathlib import Path
from urllib.parse import quote, unquote

import click

from runtime.cli.failure import exit_with_problems
from runtime.embedded.credentials import (
    POSTGRES_PASSWORD_FILE,
    POSTGRES_SUPERUSER_PASSWORD_FILE,
    read_secret,
)
from runtime.embedded.postgres_programs import find_programs
from runtime.embedded.postgres_roles import DATABASE, FUNCTIONS, SUPERUSER
from runtime.embedded.postgres_socket import find_socket_directory
from runtime.errors import ConfigError, Problem
from runtime.settings import HostSettings


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--superuser", is_flag=True, help="As an administrator of the embedded server.")
@click.option("--print-address", is_flag=True, help="Print the address, password included.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[PSQL ARGUMENT...]")
def psql(arguments: tuple[str, ...], *, superuser: bool, print_address: bool) -> None:
    """Open psql on the functions' database, with the functions' role.

    That is DATABASE_URL, or else the PostgreSQL that `runtime serve` embeds and which must be
    running. Arguments go to psql: `runtime psql -c 'SELECT 1'`.
    """
    try:
        settings = HostSettings.from_environment(os.environ)
        address, password = find_database(settings, superuser=superuser)
    except ConfigError as error:
        exit_with_problems(error)
    program = _find_program(settings)
    if print_address or program is None:
        if not print_address:
            click.echo("There is no psql here; any client takes this address:", err=True)
        click.echo(with_password(address, password))
        return
    # In the environment: other users of the machine can see arguments.
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    os.execve(program, [program, address, *arguments], environment)  # noqa: S606 - no shell


def find_database(settings: HostSettings, *, superuser: bool = False) -> tuple[str, str | None]:
    """The address without the password, and the password; None when there is none.

    Raises:
        ConfigError: the embedded PostgreSQL does not run.
    """
    if settings.database_url is not None:
        if superuser:
            wrong, remedy = "names a server that is not embedded", "leave out --superuser"
            raise ConfigError([Problem("DATABASE_URL", "", wrong, remedy)])
        return _without_password(settings.database_url.get_secret_value())
    role, file = (
        (SUPERUSER, POSTGRES_SUPERUSER_PASSWORD_FILE)
        if superuser
        else (FUNCTIONS, POSTGRES_PASSWORD_FILE)
    )
    path = settings.data_dir / file
    password = read_secret(path)
    if password is None:
        wrong = "there is no password of an embedded PostgreSQL"
        remedy = "run this where `runtime serve` runs and as its user, or set RUNTIME_DATA_DIR"
        raise ConfigError([Problem(str(path), "", wrong, remedy)])
    socket_directory = find_socket_directory(settings.data_dir / "postgres" / "data")
    if socket_directory is None:
        wrong = "the embedded PostgreSQL does not run"
        remedy = "start `runtime serve` with a function that uses postgres"
        raise ConfigError([Problem(str(settings.data_dir), "", wrong, remedy)])
    host = quote(str(socket_directory), safe="")
    return f"postgresql://{role}@/{DATABASE}?host={host}", password


def _without_password(url: str) -> tuple[str, str | None]:
    scheme, separator, rest = url.partition("://")
    userinfo, at, place = rest.rpartition("@")
    user, colon, password = userinfo.partition(":")
    if not (separator and at and colon):
        return url, None
    return f"{scheme}://{user}@{place}", unquote(password)


def with_password(address: str, password: str | None) -> str:
    """The address with the password, if there is one."""
    if password is None:
        return address
    user, _, place = address.rpartition("@")
    return f"{user}:{quote(password, safe='')}@{place}"


def _find_program(settings: HostSettings) -> str | None:
    """The psql of the embedded server's package, or else the one on the path."""
    try:
        program: Path | None = find_programs(settings.data_dir / "postgres" / "data") / "psql"
    except ConfigError:
        program = None
    if program is not None and os.access(program, os.X_OK):
        return str(program)
    return shutil.which("psql")
