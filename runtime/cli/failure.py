"""How a command ends when it cannot do what it was asked for."""

import sys
import textwrap
from typing import NoReturn

import click

from runtime.errors import ConfigError
from runtime.observe.console import terminal_width

EXIT_CODE = 2
"""A person must change something first: a file, an argument."""
UNAVAILABLE_EXIT_CODE = 1
"""A server does not answer; the same command may work later."""


def exit_with_problems(error: ConfigError, code: int = EXIT_CODE) -> NoReturn:
    """Print one problem per line to standard error, and exit with `code`."""
    for problem in error.problems:
        click.echo(_wrapped(str(problem)), err=True)
    count = len(error.problems)
    click.echo(f"{count} {'problem' if count == 1 else 'problems'}", err=True)
    raise SystemExit(code)


def _wrapped(line: str) -> str:
    """On a terminal, in lines that break between words; elsewhere as it is."""
    if not sys.stderr.isatty():
        return line
    width = terminal_width(sys.stderr)
    return textwrap.fill(
        line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def exit_with_nothing_done(sentence: str) -> NoReturn:
    """Say why there was nothing to do, and exit with 2."""
    click.echo(_wrapped(sentence), err=True)
    raise SystemExit(EXIT_CODE)


def exit_unavailable(sentence: str) -> NoReturn:
    """Say who does not answer, and exit with 1."""
    click.echo(_wrapped(sentence), err=True)
    raise SystemExit(UNAVAILABLE_EXIT_CODE)
