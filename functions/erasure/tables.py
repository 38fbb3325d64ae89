"""Which tables hold rows of tenants, and in which order they are emptied. Does no I/O."""

from collections.abc import Collection, Iterable
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

OTHER_COLUMNS = (("quarantine_events", "counted_for"),)
"""Columns that hold a tenant under another name than `tenant_id`."""

ENTRANCES = frozenset(
    {
        *("quarantine_events", "quarantine_minutes", "quarantine_usage"),
        *("quarantine_usage_changes", "message_counts", "message_count_changes"),
        *("TELEMETRY", "SHADOW", "COMMANDS", "UNMAPPED"),
    }
)
"""Tables and streams into which a trusted publisher still brings messages that name the tenant.

They are refused, and do not keep the erasure from its end: afterwards they name a tenant that does
not exist.
"""


class TenantTable(NamedTuple):
    """A table, or a partition, and its column with the tenant; both ready for a statement.

    Attributes:
        name: the table.
        shown: the name under which its rows are counted, that of the whole table.
        of_column: the column.
    """

    name: str
    shown: str
    of_column: str


def referring_first(
    tables: Collection[TenantTable], references: Iterable[tuple[str, str]]
) -> list[TenantTable]:
    """The tables, each before those to which it refers.

    So a row goes with few others at a time, and no reference refuses to let it go.

    Args:
        tables: the tables.
        references: the referring and the referred table of each reference.
    """
    graph: dict[str, set[str]] = {table.name: set() for table in tables}
    for referring, referred in references:
        graph.setdefault(referred, set()).add(referring)
    try:
        order = {name: place for place, name in enumerate(TopologicalSorter(graph).static_order())}
    except CycleError:
        # Of tables that refer to each other none can be first; what is left goes the next time.
        return list(tables)
    return sorted(tables, key=lambda table: order[table.name])


__all__ = ["ENTRANCES", "OTHER_COLUMNS", "TenantTable", "referring_first"]
