"""Prints the results as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

from benchmarks.consumption import Pace


@dataclass(frozen=True, slots=True)
class Comparison:
    """Our paces and the peer's, by round, and the ratio that ours must reach."""

    what: str
    peer: str
    ours: Sequence[Pace]
    theirs: Sequence[Pace]
    bar: float

    @property
    def ratio(self) -> float:
        """The median of the ratios by round: the two runs of a round share the machine's load."""
        return median(
            ours.per_s / theirs.per_s for ours, theirs in zip(self.ours, self.theirs, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Waits:
    """How long each message of a quiet tenant waited, in seconds, in one configuration."""

    way: str
    seconds: Sequence[float]

    @property
    def p99_s(self) -> float:
        """The 99th percentile."""
        return quantiles(self.seconds, n=100)[-1]


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of the process to ready, and the limit that they must be below."""

    what: str
    seconds: Sequence[float]
    bar_s: float


@dataclass(frozen=True, slots=True)
class Reloads:
    """Seconds from each save of a file to the first answer by the new code, and the limits."""

    what: str
    seconds: Sequence[float]
    median_bar_s: float
    worst_bar_s: float


@dataclass(frozen=True, slots=True)
class Matching:
    """µs to find a message's routes among a tenant's: by the trie, and by trying each of them.

    Attributes:
        built_us: µs for each route, when the trie is made.
    """

    routes: int
    trie_us: float
    one_by_one_us: float
    built_us: float


def print_results(
    comparisons: Sequence[Comparison],
    waits: Sequence[Waits],
    start: Start,
    reloads: Reloads,
    matching: Sequence[Matching],
) -> None:
    """Print all results, each with its bar."""
    console = Console(width=130)
    table = Table(
        title="Messages a second, µs of processor time for each, ratio: medians of the rounds"
    )
    table.add_column("what", no_wrap=True)
    for name in ("ours", "µs", "beside", "peer", "µs", "ratio", "bar", ""):
        table.add_column(name, justify="left" if name == "beside" else "right", no_wrap=True)
    for one in comparisons:
        table.add_row(
            one.what,
            *_of(one.ours),
            one.peer,
            *_of(one.theirs),
            f"{one.ratio:.2f}x",
            f"{one.bar:g}x",
            "met" if one.ratio >= one.bar else "MISSED",
        )
    console.print(table)
    _print_waits(console, waits)
    _print_matching(console, matching)
    _print_reloads(console, reloads)
    seconds = median(start.seconds)
    verdict = "met" if seconds < start.bar_s else "MISSED"
    console.print(
        f"{start.what}: {seconds:.2f} s, {seconds / start.bar_s:.0%} of the bar of"
        f" {start.bar_s:g} s: {verdict}"
    )


def _print_waits(console: Console, waits: Sequence[Waits]) -> None:
    table = Table(title="A quiet tenant beside a flooding one, ms from published to served")
    table.add_column("the function's messages", no_wrap=True)
    for name in ("median", "99th percentile", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in waits:
        figures = (median(one.seconds), one.p99_s, max(one.seconds))
        table.add_row(one.way, *(f"{figure * 1000:,.0f}" for figure in figures))
    console.print(table)


def _print_matching(console: Console, matching: Sequence[Matching]) -> None:
    table = Table(title="The routes of a message, µs to find them; µs a route to make the trie")
    for name in ("routes of the tenant", "trie", "one by one", "trie made"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in matching:
        table.add_row(
            f"{one.routes:,}",
            f"{one.trie_us:.1f}",
            f"{one.one_by_one_us:,.1f}",
            f"{one.built_us:.1f}",
        )
    console.print(table)


def _print_reloads(console: Console, reloads: Reloads) -> None:
    usual_s, worst_s = median(reloads.seconds), max(reloads.seconds)
    is_met = usual_s <= reloads.median_bar_s and worst_s <= reloads.worst_bar_s
    console.print(
        f"{reloads.what}, {len(reloads.seconds)} saves: median {usual_s * 1000:.0f} ms of"
        f" {reloads.median_bar_s * 1000:.0f}, worst {worst_s * 1000:.0f} ms of"
        f" {reloads.worst_bar_s * 1000:.0f}: {'met' if is_met else 'MISSED'}"
    )


def _of(paces: Sequence[Pace]) -> tuple[str, str]:
    return (
        f"{median(one.per_s for one in paces):,.0f}",
        f"{median(one.cpu_us for one in paces):.1f}",
    )
