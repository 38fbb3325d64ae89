"""What commands print: tables that fit a terminal and stay whole in a pipe, and plain text."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from runtime.observe.console import printable

__all__ = [
    "align",
    "count",
    "print_json",
    "print_table",
    "printable",
    "progress_bar",
    "show_span",
    "show_time",
]

_GAP = 2
_LAST_LEAST = 24
_UNITS_S = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()
) -> None:
    """Print rows in aligned columns; those named in `numbers` to the right.

    On a terminal the last column is cut to what the others leave of the width. Elsewhere every row
    is one whole line.
    """
    right = [heading in numbers for heading in headings]
    if not sys.stdout.isatty():
        click.echo(align([headings, *rows], right))
        return
    widths = [
        max(cell_len(cell) for cell in column) for column in zip(headings, *rows, strict=True)
    ]
    taken = sum(width + _GAP for width in widths[:-1])
    console = Console()
    console.width = max(console.width, taken + min(widths[-1], _LAST_LEAST))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for heading, width, to_right in zip(headings, widths, right, strict=True):
        table.add_column(
            heading,
            justify="right" if to_right else "left",
            no_wrap=True,
            overflow="ellipsis",
            width=min(width, console.width - taken) if heading == headings[-1] else width,
        )
    for row in rows:
        # Never a plain string: rich would take brackets in a payload for its markup.
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def align(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """The rows as lines, each column as wide as its widest cell."""
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


def show_time(moment: datetime) -> str:
    """A point in time to the second, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def show_span(seconds: float) -> str:
    """A duration in its two largest units: `3h 12m`."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, size in _UNITS_S:
        if left >= size or (unit == "s" and not parts):
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2])


def count(number: int, noun: str) -> str:
    """`1 dead letter`, `2,500 dead letters`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def progress_bar() -> Progress:
    """A bar on standard error; nothing when that is no terminal."""
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
