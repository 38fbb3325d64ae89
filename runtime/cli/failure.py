"""Prints why a command failed, and exits with the right code."""

import sys
from enum import IntEnum
from typing import NoReturn

import click

from runtime.cli.printing import wrapped
from runtime.errors import ConfigError


class ExitCode(IntEnum):
    """The exit codes of all commands. `psql` exits with the code of the program psql."""

    DONE = 0
    """Done, or there is nothing to do or to show."""
    UNAVAILABLE = 1
    """A server does not answer, the user did not say yes, or Ctrl-C; may work when run again."""
    REFUSED = 2
    """A file, variable or argument must be changed first, or nothing matches it."""
    FAILED = 3
    """The command worked; the function that it called failed."""


def exit_with_problems(error: ConfigError, code: int = ExitCode.REFUSED) -> NoReturn:
    """Print one problem per line to standard error, and exit with `code`."""
    for problem in error.problems:
        click.echo(wrapped(str(problem), sys.stderr), err=True)
    count = len(error.problems)
    click.echo(f"{count} {'problem' if count == 1 else 'problems'}", err=True)
    raise SystemExit(code)


def exit_with_nothing_done(sentence: str) -> NoReturn:
    """Print why nothing was done, and exit with 2."""
    click.echo(wrapped(sentence, sys.stderr), err=True)
    raise SystemExit(ExitCode.REFUSED)


def exit_unavailable(sentence: str, remedy: str = "") -> NoReturn:
    """Print which server does not answer, and what the user can do, and exit with 1."""
    for line in filter(None, (sentence, remedy)):
        click.echo(wrapped(line, sys.stderr), err=True)
    raise SystemExit(ExitCode.UNAVAILABLE)
