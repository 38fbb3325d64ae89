"""Formats the differences between manifests and server for a person and for a script."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runtime.broker.drift import Change, Kind
from runtime.broker.field_text import show_value
from runtime.broker.leases import with_leases
from runtime.broker.streams import way_out
from runtime.broker.ticks import with_ticks
from runtime.cli.failure import exit_with_problems
from runtime.cli.printing import align, printable
from runtime.errors import ConfigError
from runtime.manifest import Manifest, read
from runtime.process.placeholders import with_placeholders
from runtime.settings import HostSettings

NO_CHANGES = "No changes: the server is as the manifests say."

_KINDS: dict[Kind, str] = {
    "create": "to create",
    "update": "to update in place",
    "immutable": "that JetStream cannot change in place",
    "destructive": "that would lose messages",
}
_SHOWN_OF_STREAM = ("subjects", "retention", "max_age", "max_bytes", "max_msgs", "num_replicas")
_SHOWN_OF_CONSUMER = ("filter_subjects", "ack_wait", "max_ack_pending", "max_deliver")
_UNREMARKABLE: tuple[Any, ...] = (None, 0, -1, 1, "", [])


def read_manifest(paths: Sequence[Path]) -> Manifest:
    """Read the manifest, with all streams that serving it needs; mistakes end the process."""
    try:
        settings = HostSettings.from_environment(os.environ)
        return with_leases(with_ticks(read(paths, with_placeholders(settings, os.environ))))
    except ConfigError as error:
        exit_with_problems(error)


def draw(changes: Iterable[Change]) -> str:
    """One line for each change, in a stable order, with the remedy when one is needed."""
    ordered = _ordered(changes)
    lines = align([(change.kind, change.object, _draw_fields(change)) for change in ordered])
    drawn = []
    for change, line in zip(ordered, lines.split("\n"), strict=True):
        drawn.append(line)
        if change.kind in ("immutable", "destructive"):
            drawn.append(f"    way out: {way_out(change)}")
    return "\n".join(drawn)


def summarize(changes: Iterable[Change]) -> str:
    """The number of changes of each kind: `2 to create, 1 to update in place`."""
    counts = Counter(change.kind for change in changes)
    return ", ".join(f"{counts[kind]} {words}" for kind, words in _KINDS.items() if counts[kind])


def describe(change: Change) -> dict[str, Any]:
    """A change as a JSON object, in JetStream's own terms."""
    described: dict[str, Any] = {
        "kind": change.kind,
        "object": change.object,
        "field": change.field,
        "found": change.found,
        "wanted": change.wanted,
    }
    if change.kind in ("immutable", "destructive"):
        described["way_out"] = way_out(change)
    return described


def _ordered(changes: Iterable[Change]) -> list[Change]:
    kinds = list(_KINDS)
    return sorted(
        changes,
        key=lambda change: (
            kinds.index(change.kind),
            change.object.startswith("consumer"),
            change.object,
            change.field,
        ),
    )


def _draw_fields(change: Change) -> str:
    if change.field:
        found, wanted = (_show(change.field, each) for each in (change.found, change.wanted))
        return f"{change.field}: {found} -> {wanted}"
    shown = _SHOWN_OF_STREAM if change.object.startswith("stream") else _SHOWN_OF_CONSUMER
    parts = [
        f"{field} {_show(field, change.wanted[field])}"
        for field in shown
        if change.wanted.get(field) not in _UNREMARKABLE
    ]
    return ", ".join(parts)


def _show(field: str, value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    return printable(show_value(field, value))
