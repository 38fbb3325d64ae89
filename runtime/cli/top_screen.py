"""Renders the screen of `runtime top`: a header, a row for each function, and the keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Group
from rich.text import Text

from runtime.cli.function_table import show_dead_letters, show_load, show_state, urgency
from runtime.cli.function_views import FunctionView
from runtime.cli.load import Load, show_rate, show_share, sum_of
from runtime.cli.printing import count, printable
from runtime.cli.rate_history import RateHistory, sparkline
from runtime.cli.table import Cell, Column, lay_out

_HEIGHT_BESIDE_ROWS: Final = 6
"""Header, its status, an empty line, two lines of headings, and the keys."""
_NARROW, _WIDE = 8, 40
_ROOM_OF_OTHERS: Final = 110
"""A terminal that is wider than this gives its width to the sparklines."""


@dataclass(frozen=True, slots=True)
class Row:
    """One function, or the endpoints of one micro service."""

    name: str
    functions: Sequence[str]
    load: Load | None
    pending: int | None
    dead_letters: int
    state: Text


@dataclass(frozen=True, slots=True)
class SortKey:
    """One way to sort.

    Attributes:
        key: the key on the keyboard.
        label: what it sorts by.
        heading: the column that is marked.
        of: the value by which rows are sorted.
        falls: whether the highest value comes first.
    """

    key: str
    label: str
    heading: str
    of: Callable[[Row], float | str]
    falls: bool = True


SORT_KEYS: Final = (
    SortKey("n", "name", "FUNCTION", lambda row: row.name, falls=False),
    SortKey("m", "msg/s", "MSG/S", lambda row: row.load.messages_per_s if row.load else -1),
    SortKey("e", "errors", "ERRORS", lambda row: (row.load and row.load.error_share) or 0),
    SortKey("t", "P99", "P99", lambda row: (row.load and row.load.p99_s) or 0),
    SortKey("p", "pending", "PENDING", lambda row: -1 if row.pending is None else row.pending),
    SortKey("d", "dead", "DEAD LETTERS", lambda row: row.dead_letters),
)


@dataclass(slots=True)
class Screen:
    """The state of the screen, changed by keys and polls.

    Attributes:
        sort: how the rows are sorted.
        is_reversed: whether the last row comes first.
        first: number of the first row that is shown, from 0.
        trouble: why the figures are old; empty when they are not.
    """

    server: str
    sort: SortKey = SORT_KEYS[0]
    is_reversed: bool = False
    first: int = 0
    trouble: str = ""

    def press(self, key: str, rows: int, height: int) -> bool:
        """Act on a key; return whether it ends the program."""
        page = rows_that_fit(height)
        moves = {"up": -1, "down": 1, "page up": -page, "page down": page, "home": -rows}
        for sort in SORT_KEYS:
            if key == sort.key:
                self.sort, self.is_reversed, self.first = sort, False, 0
        if key == "r":
            self.is_reversed = not self.is_reversed
        self.first = max(0, min(self.first + moves.get(key, 0), rows - page))
        return key in {"q", "Q", "end of input"}

    def render(
        self,
        views: Sequence[FunctionView],
        rows: Sequence[Row],
        history: RateHistory,
        *,
        width: int,
        height: int,
        clock: str,
    ) -> Group:
        """The lines of the screen, at most `height` of at most `width` columns."""
        ordered = sorted(rows, key=lambda row: row.name)
        falls = self.sort.falls != self.is_reversed
        ordered.sort(key=self.sort.of, reverse=falls)
        shown = ordered[self.first : self.first + rows_that_fit(height)]
        bars = max(_NARROW, min(_WIDE, width - _ROOM_OF_OTHERS))
        cells = [_cells(row, sparkline(history.of(row.functions), bars)) for row in shown]
        columns = [self._marked(column) for column in _columns(bars)]
        table, _ = lay_out(columns, cells, width)
        status = Text(self.trouble, "yellow") if self.trouble else self._position(shown, rows)
        header, keys = self._header(views, clock), _keys()
        for line in (header, status, keys):
            line.truncate(width, overflow="ellipsis")
        return Group(header, status, Text(""), table if rows else Text("No functions."), keys)

    def _marked(self, column: Column) -> Column:
        if column.heading != self.sort.heading:
            return column
        first, _, more = column.heading.partition(" ")
        arrow = "▼" if self.sort.falls != self.is_reversed else "▲"
        return column.headed(f"{first}{arrow}" if not more else f"{first} {more}{arrow}")

    def _header(self, views: Sequence[FunctionView], clock: str) -> Text:
        hosts = {each.host for view in views for each in view.processes}
        load = sum_of(view.load for view in views if view.load)
        parts = (
            self.server,
            clock,
            f"{count(len(hosts), 'host')}, {count(len(views), 'function')}",
            f"{show_rate(load.messages_per_s)} msg/s",
            f"{show_share(load.error_share)} errors",
        )
        return Text("  ".join(parts), "bold")

    def _position(self, shown: Sequence[Row], rows: Sequence[Row]) -> Text:
        if len(shown) == len(rows):
            return Text("")
        last = self.first + len(shown)
        return Text(f"{self.first + 1} to {last} of {len(rows)}; arrows scroll", "dim")


def rows_that_fit(height: int) -> int:
    """The number of rows for which a terminal has room."""
    return max(1, height - _HEIGHT_BESIDE_ROWS)


def rows_of(views: Sequence[FunctionView], *, folds: bool) -> list[Row]:
    """A row for each function.

    Args:
        views: the functions.
        folds: whether the endpoints of one micro service are one row.
    """
    grouped: dict[tuple[str, str], list[FunctionView]] = {}
    for view in views:
        folded = folds and view.kind == "endpoint"
        key = ("service", view.service) if folded else ("function", view.function)
        grouped.setdefault(key, []).append(view)
    return [_row(name, group) for (_, name), group in grouped.items()]


def _row(name: str, views: Sequence[FunctionView]) -> Row:
    loads = [view.load for view in views if view.load is not None]
    pending = [view.pending for view in views if view.pending is not None]
    return Row(
        name if len(views) > 1 else views[0].function,
        [view.function for view in views],
        sum_of(loads) if loads else None,
        sum(pending) if pending else None,
        sum(view.dead_letters for view in views),
        show_state(max(views, key=urgency)),
    )


def _columns(bars: int) -> Sequence[Column]:
    return (
        Column("FUNCTION", least=14, is_name=True),
        Column("LOAD", priority=1, least=bars),
        Column("MSG/S", is_number=True),
        Column("ERRORS", is_number=True),
        Column("P50", priority=2, is_number=True),
        Column("P99", is_number=True),
        Column("PENDING", is_number=True),
        Column("DEAD LETTERS", is_number=True),
        Column("STATE", least=11),
    )


def _cells(row: Row, bars: str) -> Sequence[Cell]:
    return (
        printable(row.name),
        Text(bars, "cyan"),
        *show_load(row.load),
        "-" if row.pending is None else f"{row.pending:,}",
        show_dead_letters(row.dead_letters),
        row.state,
    )


def _keys() -> Text:
    keys = [("q", "quit"), *((sort.key, sort.label) for sort in SORT_KEYS), ("r", "reverse")]
    line = Text()
    for key, label in keys:
        line.append(f"{key} ", "bold").append(f"{label}  ", "dim")
    return line
