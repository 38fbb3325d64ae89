"""Renders the table of `runtime ls`: a row for each function or micro service."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from rich.text import Text

from runtime.cli.pause import show_end
from runtime.cli.printing import count, printable
from runtime.cli.selection import common_subject
from runtime.cli.table import Cell, Column, print_table

_COLUMNS = (
    Column("FUNCTION", least=20, is_name=True),
    Column("KIND", priority=1),
    Column("PENDING", is_number=True),
    Column("ACK PENDING", priority=4, is_number=True),
    Column("RETRIED", priority=5, is_number=True),
    Column("PARKED", priority=3, is_number=True),
    Column("DEAD LETTERS", is_number=True),
    Column("INSTANCES", priority=2, is_number=True),
    Column("VERSION", priority=6, least=12),
    Column("STATE", least=11),
    Column("BOUND TO", priority=7, least=24),
)


@dataclass(slots=True)
class FunctionView:
    """The state of one function, as the server and the hosts report it.

    Attributes:
        kind: the kind of its binding; empty when only dead letters of the function exist.
        service: the micro service of an endpoint; empty for any other function.
        bound_to: `stream/durable`, or an endpoint's subject; empty for a service.
        pending: messages not delivered yet, in its stream and its mailbox; None without a consumer.
        ack_pending: messages delivered and not settled.
        retried: those of `ack_pending` that were delivered more than once.
        parked: messages that wait for a later attempt in the mailbox.
        dead_letters: messages that were given up, and neither redriven nor purged.
        versions: number of instances of each version of its code.
        paused_until: end of the pause; None when the function is not paused.
        drift: how its stream and consumers differ from the manifest of a host that runs it.
    """

    function: str
    kind: str = ""
    service: str = ""
    bound_to: str = ""
    pending: int | None = None
    ack_pending: int | None = None
    retried: int | None = None
    parked: int | None = None
    dead_letters: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    paused_until: datetime | None = None
    drift: str = ""

    @property
    def instances(self) -> int:
        """The number of processes that run the function."""
        return sum(self.versions.values())


def draw_functions(views: Sequence[FunctionView], *, folds: bool) -> None:
    """Print the functions, sorted by name.

    Args:
        views: the functions to show.
        folds: whether several endpoints of one micro service are one row.
    """
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    folded: dict[str, list[FunctionView]] = {}
    for view in views:
        if folds and view.kind == "endpoint":
            folded.setdefault(view.service, []).append(view)
        else:
            rows.append((view.function, _draw(view)))
    for service, endpoints in folded.items():
        alone = len(endpoints) == 1
        rows.append((service, _draw(endpoints[0]) if alone else _draw_service(service, endpoints)))
    print_table(_COLUMNS, [row for _, row in sorted(rows, key=lambda row: row[0])])


def _draw(view: FunctionView) -> tuple[Cell, ...]:
    return (
        printable(view.function),
        printable(view.kind) or "-",
        *map(_show_count, (view.pending, view.ack_pending, view.retried, view.parked)),
        _show_dead_letters(view.dead_letters),
        _show_count(view.instances),
        _show_versions(view.versions),
        _show_state(view),
        printable(view.bound_to),
    )


def _draw_service(service: str, endpoints: Sequence[FunctionView]) -> tuple[Cell, ...]:
    """One row for the endpoints of a micro service: sums, and ranges of differing values."""
    instances = {view.instances for view in endpoints}
    least, most = _show_count(min(instances)), _show_count(max(instances))
    versions = {version for view in endpoints for version in view.versions}
    subjects = [view.bound_to for view in endpoints]
    return (
        printable(service),
        count(len(endpoints), "endpoint"),
        *["-"] * 4,
        _show_dead_letters(sum(view.dead_letters for view in endpoints)),
        least if least == most else f"{least}-{most}",
        printable("".join(versions)) if len(versions) == 1 else f"{len(versions)} versions",
        _show_state(min(endpoints, key=lambda view: view.instances)),
        printable(common_subject(subjects)),
    )


def _show_count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _show_dead_letters(number: int) -> Text:
    return Text(_show_count(number), "yellow" if number else "")


def _show_versions(versions: dict[str, int]) -> str:
    if len(versions) < 2:  # noqa: PLR2004 - one version needs no count beside it
        return printable("".join(versions)) or "-"
    return " ".join(f"{printable(name)} x{number}" for name, number in sorted(versions.items()))


def _show_state(view: FunctionView) -> Text:
    if view.paused_until:
        return Text(f"paused {show_end(view.paused_until)}", "yellow")
    if not view.instances:
        return Text("not running", "red")
    return Text("running, drifted", "yellow") if view.drift else Text("running", "green")
