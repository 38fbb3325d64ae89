"""Renders tables: on a terminal the columns that fit, in a pipe every column in full."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.cli.printing import align

Cell = str | Text

_GAP = 2
_ELLIPSIS_LEAST = 8
"""The least width of a column, when even the columns that always stay do not fit."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and how it is shortened or left out on a narrow terminal.

    Attributes:
        heading: on a terminal its words are on lines of their own.
        priority: 0 always stays; of the others, the highest number is left out first.
        least: the least width on a terminal; None when the column must not be shortened.
        is_number: aligned to the right.
        is_name: shortened in the middle, because names often differ at their ends.
        in_pipe: whether it is printed when the output is not a terminal.
    """

    heading: str
    priority: int = 0
    least: int | None = None
    is_number: bool = False
    is_name: bool = False
    in_pipe: bool = True

    def headed(self, heading: str) -> "Column":
        """The column with another heading."""
        return replace(self, heading=heading)

    @property
    def heading_width(self) -> int:
        """The width of the heading's longest word."""
        return max(map(cell_len, self.heading.split()))


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows below headings.

    On a terminal each row is one line that fits. Columns that do not fit are left out by priority,
    and named below the table. Elsewhere every row is one line in full.
    """
    if not sys.stdout.isatty():
        kept = [at for at, column in enumerate(columns) if column.in_pipe]
        cells = [[str(row[at]) for at in kept] for row in rows]
        headings = [columns[at].heading for at in kept]
        click.echo(align([headings, *cells], [columns[at].is_number for at in kept]))
        return
    console = Console(highlight=False)
    table, left_out = lay_out(columns, rows, console.width)
    console.print(table)
    if left_out:
        console.print(Text(f"Left out here: {', '.join(left_out)}. --json has all.", "dim"))


def lay_out(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], room: int
) -> tuple[Table, list[str]]:
    """A table of a terminal's width, and the headings of the columns that do not fit."""
    natural = [
        max([column.heading_width, *(cell_len(str(row[at])) for row in rows)])
        for at, column in enumerate(columns)
    ]
    widths = fit(columns, natural, room)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for at, width in widths.items():
        table.add_column(
            _heading(columns[at].heading, width),
            justify="right" if columns[at].is_number else "left",
            vertical="bottom",
            no_wrap=True,
            overflow="ellipsis",
            width=width,
        )
    for row in rows:
        # Never a plain string: rich would read brackets in a payload as markup.
        table.add_row(*(_cell(row[at], columns[at], width) for at, width in widths.items()))
    return table, [column.heading for at, column in enumerate(columns) if at not in widths]


def _heading(heading: str, width: int) -> Text:
    return Text(heading if cell_len(heading) <= width else "\n".join(heading.split()))


def _cell(cell: Cell, column: Column, width: int) -> Text:
    if isinstance(cell, Text):
        return cell
    if column.is_name and cell_len(cell) > width:
        tail = (width - 1) // 3
        cell = f"{set_cell_size(cell, width - 1 - tail).rstrip()}…{cell[-tail:]}"
    return Text(cell)


def fit(columns: Sequence[Column], natural: Sequence[int], room: int) -> dict[int, int]:
    """The shown columns, by index, with their widths.

    Args:
        columns: all columns.
        natural: the width of each column without shortening.
        room: the width of the terminal.
    """
    shown = list(range(len(columns)))
    while True:
        least = {at: _least(columns[at], natural[at]) for at in shown}
        if _total(least.values()) <= room:
            return _shorten({at: natural[at] for at in shown}, least, room)
        last = max(shown, key=lambda at: (columns[at].priority, at))
        if columns[last].priority == 0:
            return _shorten(least, dict.fromkeys(shown, _ELLIPSIS_LEAST), room)
        shown.remove(last)


def _least(column: Column, natural: int) -> int:
    return (
        natural if column.least is None else min(natural, max(column.least, column.heading_width))
    )


def _shorten(widths: dict[int, int], least: dict[int, int], room: int) -> dict[int, int]:
    """Shorten the widest column that may be shortened, until all fit or none is left."""
    while _total(widths.values()) > room:
        giving = [at for at, width in widths.items() if width > least[at]]
        if not giving:
            break
        widths[max(giving, key=lambda at: widths[at])] -= 1
    return widths


def _total(widths: Collection[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
