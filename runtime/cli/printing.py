"""Formats what commands print besides tables: JSON, times, numbers, progress."""

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runtime.observe.console import printable, terminal_width

__all__ = [
    "align",
    "count",
    "print_json",
    "printable",
    "progress_bar",
    "show_span",
    "show_time",
    "wrapped",
]

_UNITS_S = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def align(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Format rows as lines, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    sides = [*right, *[False] * (len(widths) - len(right))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    )


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON object as one line."""
    click.echo(json.dumps(document, default=_plain))


def wrapped(line: str, stream: TextIO) -> str:
    """Wrap a line between words for a terminal; leave it unchanged for any other stream."""
    if not stream.isatty():
        return line
    width = terminal_width(stream)
    return textwrap.fill(
        line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def show_time(moment: datetime) -> str:
    """Format a point in time to the second, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def show_span(seconds: float) -> str:
    """Format a duration in its two largest units: `3h 12m`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in _UNITS_S:
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def count(number: int, noun: str) -> str:
    """Format a number with its noun: `1 dead letter`, `2,500 dead letters`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def progress_bar() -> Progress:
    """A progress bar on standard error; shown only on a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} has no JSON form")
