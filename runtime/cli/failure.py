"""Prints why a command failed, and exits with the right code."""

import sys
from typing import NoReturn

import click

from runtime.cli.printing import wrapped
from runtime.errors import ConfigError

EXIT_CODE = 2
"""Exit code when a file, variable or argument must be changed first."""
UNAVAILABLE_EXIT_CODE = 1
"""Exit code when a server does not answer; the same command may work later."""


def exit_with_problems(error: ConfigError, code: int = EXIT_CODE) -> NoReturn:
    """Print one problem per line to standard error, and exit with `code`."""
    for problem in error.problems:
        click.echo(wrapped(str(problem), sys.stderr), err=True)
    count = len(error.problems)
    click.echo(f"{count} {'problem' if count == 1 else 'problems'}", err=True)
    raise SystemExit(code)


def exit_with_nothing_done(sentence: str) -> NoReturn:
    """Print why nothing was done, and exit with 2."""
    click.echo(wrapped(sentence, sys.stderr), err=True)
    raise SystemExit(EXIT_CODE)


def exit_unavailable(sentence: str) -> NoReturn:
    """Print which server does not answer, and exit with 1."""
    click.echo(wrapped(sentence, sys.stderr), err=True)
    raise SystemExit(UNAVAILABLE_EXIT_CODE)
