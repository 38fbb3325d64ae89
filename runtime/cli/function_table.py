"""Renders the table of `runtime ls`: a row for each function or micro service."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.text import Text

from runtime.cli.function_views import FunctionView
from runtime.cli.load import Load, show_rate, show_seconds, show_share, sum_of
from runtime.cli.pause import show_end
from runtime.cli.printing import count, printable
from runtime.cli.selection import common_subject
from runtime.cli.table import Cell, Column, print_table

_COLUMNS = (
    Column("FUNCTION", least=18, is_name=True),
    Column("KIND", priority=5),
    Column("PENDING", is_number=True),
    Column("MSG/S", is_number=True),
    Column("ERRORS", priority=1, is_number=True),
    Column("P50", priority=3, is_number=True),
    Column("P99", priority=2, is_number=True),
    Column("ACK PENDING", priority=7, is_number=True),
    Column("RETRIED", priority=8, is_number=True),
    Column("PARKED", priority=6, is_number=True),
    Column("DEAD LETTERS", is_number=True),
    Column("INSTANCES", priority=4, is_number=True),
    Column("VERSION", priority=9, least=12),
    Column("STATE", least=11),
    Column("BOUND TO", priority=10, least=24),
)
_SHOWN_NAMES = 3
"""The most processes of a version, or functions of a failed reload, that a note names."""
_SHOWN_NOTES = 5
"""The most functions of several versions that have a note."""


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


def notes_on(views: Sequence[FunctionView]) -> Iterator[str]:
    """A line for each failed reload, each function of several versions, and each drift."""
    failed: dict[str, list[str]] = defaultdict(list)
    places: dict[str, set[str]] = defaultdict(set)
    for view in views:
        for instance in view.failed_reloads:
            places[instance.reload_error].add(instance.place)
            failed[instance.reload_error].append(view.function)
    for error, functions in failed.items():
        named = _show_some(sorted(set(functions)))
        where = _show_some(sorted(places[error]))
        yield f"{named}: the last reload failed on {where}: {printable(error)}"
    mixed = [view for view in views if len(view.versions) > 1]
    for view in mixed[:_SHOWN_NOTES]:
        yield f"{printable(view.function)}: {_show_hosts(view)}"
    if len(mixed) > _SHOWN_NOTES:
        yield f"and {count(len(mixed) - _SHOWN_NOTES, 'function')} of several versions; see --json"
    for view in views:
        if view.drift:
            yield f"{printable(view.function)}: {printable(view.drift)}"


def show_state(view: FunctionView) -> Text:
    """The function's state in one or two words, with the colour of its urgency."""
    if view.paused_until:
        return Text(f"paused {show_end(view.paused_until)}", "yellow")
    if not view.instances:
        return Text("not running", "red")
    if view.failed_reloads:
        return Text("reload failed", "red")
    if view.drift:
        return Text("running, drifted", "yellow")
    if (versions := len(view.versions)) > 1:
        return Text(f"{versions} versions", "yellow")
    return Text("running", "green")


def _draw(view: FunctionView) -> tuple[Cell, ...]:
    return (
        printable(view.function),
        printable(view.kind) or "-",
        _show_count(view.pending),
        *show_load(view.load),
        *map(_show_count, (view.ack_pending, view.retried, view.parked)),
        show_dead_letters(view.dead_letters),
        _show_count(view.instances),
        _show_versions(view.versions),
        show_state(view),
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
        "-",
        *show_load(sum_of(view.load for view in endpoints if view.load)),
        *["-"] * 3,
        show_dead_letters(sum(view.dead_letters for view in endpoints)),
        least if least == most else f"{least}-{most}",
        printable("".join(versions)) if len(versions) == 1 else f"{len(versions)} versions",
        show_state(max(endpoints, key=urgency)),
        printable(common_subject(subjects)),
    )


def show_load(load: Load | None) -> tuple[Cell, Cell, Cell, Cell]:
    """Messages a second, share of errors, and the handler's time, as cells."""
    if load is None:
        return ("-", "-", "-", "-")
    share = load.error_share
    return (
        show_rate(load.messages_per_s),
        Text(show_share(share), "yellow" if share else ""),
        show_seconds(load.p50_s),
        show_seconds(load.p99_s),
    )


def show_dead_letters(number: int) -> Text:
    """The number of dead letters, coloured if there are any."""
    return Text(_show_count(number), "yellow" if number else "")


def urgency(view: FunctionView) -> tuple[bool, bool, bool]:
    """Sorts functions by how much their state needs a person."""
    return (not view.instances, bool(view.failed_reloads), len(view.versions) > 1)


def _show_count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _show_versions(versions: dict[str, int]) -> Cell:
    if len(versions) < 2:  # noqa: PLR2004 - one version needs no count beside it
        return printable("".join(versions)) or "-"
    shown = " ".join(f"{printable(name)} x{number}" for name, number in sorted(versions.items()))
    return Text(shown, "yellow")


def _show_hosts(view: FunctionView) -> str:
    """Where each version runs: `2 versions: 0a1b on web-1 (pid 7); 2c3d on web-2 (pid 9)`."""
    places: dict[str, list[str]] = defaultdict(list)
    for instance in view.processes:
        places[instance.version].append(instance.place)
    shown = [f"{printable(version)} on {_show_some(each)}" for version, each in places.items()]
    return f"{len(places)} versions: {'; '.join(shown)}"


def _show_some(names: Sequence[str]) -> str:
    shown = ", ".join(map(printable, names[:_SHOWN_NAMES]))
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
