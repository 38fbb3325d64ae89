"""Compares wanted streams and consumers with the server's, and says what each change would cost."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from runtime.broker.field_text import show_value
from runtime.broker.stored import parse_time_ns
from runtime.broker.stream_configs import FUNCTION_METADATA, Wanted
from runtime.subjects import covers

Kind = Literal["create", "update", "immutable", "destructive"]

_LIMITS = {"max_age", "max_bytes", "max_msgs", "max_msgs_per_subject"}
_IMMUTABLE = {"storage", "ack_policy", "deliver_policy", "deliver_subject"}
_ABSENT: Mapping[str, Any] = {"filter_subjects": [], "backoff": [], "deliver_subject": ""}


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the manifest and the server.

    Attributes:
        object: `stream TELEMETRY` or `consumer TELEMETRY/ingest-workers`.
        field: in JetStream's own terms; empty when the whole object is missing.
        found: the server's value; None when the object is missing.
        wanted: the manifest's value.
        kind: `create` and `update` are done in place; JetStream refuses an `immutable` one; a
            `destructive` one would drop messages or stop storing them.
    """

    object: str
    field: str
    found: Any
    wanted: Any
    kind: Kind

    def __str__(self) -> str:
        if not self.field:
            return f"{self.kind} {self.object}"
        found, wanted = (show_value(self.field, each) for each in (self.found, self.wanted))
        return f"{self.kind} {self.object}: {self.field} from {found} to {wanted}"


def drift(
    wanted: Wanted,
    found: Mapping[str, Any] | None,
    state: Mapping[str, Any] | None = None,
    *,
    now_ns: int | None = None,
) -> list[Change]:
    """The changes that make the object as wanted; fields that are not `compared` are left alone.

    Args:
        wanted: the object.
        found: its configuration on the server; None when it is missing.
        state: a stream's state; `most_per_subject` beside JetStream's own fields is the largest
            number of messages of one subject.
        now_ns: the time in nanoseconds since 1970, from which the age of stored messages is
            measured.
    """
    if found is None:
        return [Change(wanted.name, "", None, dict(wanted.config), "create")]
    changes = []
    will_be = replace(wanted, config=merged(wanted, found))
    for field in sorted(wanted.compared):
        ours = _normal(field, wanted.config)
        theirs = _normal(field, found)
        if ours != theirs:
            kind = _kind(field, (theirs, ours), will_be, state or {}, now_ns or time.time_ns())
            changes.append(Change(wanted.name, field, theirs, ours, kind))
    return changes


def without_memory(changes: Sequence[Change]) -> list[Change]:
    """The changes, without the creation of memory streams and of their consumers."""
    in_memory = {
        change.object.removeprefix("stream ")
        for change in changes
        if change.kind == "create" and change.wanted.get("storage") == "memory"
    }
    return [
        change
        for change in changes
        if change.kind != "create" or change.object.split()[1].split("/")[0] not in in_memory
    ]


def merged(wanted: Wanted, found: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration for an update: the server's, with the compared fields as wanted."""
    config = dict(found)
    for field in wanted.compared:
        if field == "metadata":
            config[field] = {**found.get(field, {}), **wanted.config[field]}
        elif wanted.config.get(field):
            config[field] = wanted.config[field]
        else:
            config.pop(field, None)
    if "filter_subjects" in wanted.compared:
        config.pop("filter_subject", None)
    if wanted.config.get("allow_msg_schedules"):
        config["allow_rollup_hdrs"] = True
    if 0 < config.get("max_age", 0) < config.get("duplicate_window", 0):
        config["duplicate_window"] = config["max_age"]
    return config


def _normal(field: str, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever JSON holds
    if field == "filter_subjects":
        single = config.get("filter_subject")
        return sorted({*(config.get(field) or ()), *([single] if single else ())} - {">"})
    if field == "subjects":
        return sorted(config.get(field) or ())
    if field == "metadata":
        return (config.get(field) or {}).get(FUNCTION_METADATA)
    if field in _LIMITS:
        return max(0, config.get(field, 0))
    return config.get(field) or _ABSENT.get(field, config.get(field))


def _kind(
    field: str,
    values: tuple[Any, Any],
    wanted: Wanted,
    state: Mapping[str, Any],
    now_ns: int,
) -> Kind:
    theirs, ours = values
    if field in _IMMUTABLE:
        return "immutable"
    if field == "retention":
        if "workqueue" in (ours, theirs):
            return "immutable"
        return "destructive" if ours == "interest" else "update"
    # With retention `interest` the server removes at once what a filter no longer matches, also
    # when another consumer's filter is made wider in its place.
    if field == "subjects" or (field == "filter_subjects" and wanted.holds):
        narrower = any(_uncovered(theirs or [">"], ours or [">"]))
        return "destructive" if narrower else "update"
    # A stream with `discard: new` may hold more than a lowered limit.
    limits = {"max_bytes", "max_msgs"} if field == "discard" else _LIMITS & {field}
    drops = any(_drops(limit, wanted, state, now_ns) for limit in limits)
    return "destructive" if drops else "update"


def _uncovered(theirs: Iterable[str], ours: Iterable[str]) -> Iterator[str]:
    patterns = list(ours)
    for subject in theirs:
        if not any(covers(pattern, subject) for pattern in patterns):
            yield subject


def _drops(field: str, wanted: Wanted, state: Mapping[str, Any], now_ns: int) -> bool:
    """Whether the server would remove stored messages to keep this limit."""
    limit = _normal(field, wanted.config)
    if not limit or not state.get("messages"):
        return False
    if field == "max_age":
        return bool(now_ns - parse_time_ns(state["first_ts"]) > limit)
    if field == "max_msgs_per_subject":
        # Without the count only a stream with fewer messages than the limit is certainly safe.
        return bool(state.get("most_per_subject", state["messages"]) > limit)
    # With `discard: new` a full stream refuses new messages and keeps the stored ones.
    stored = state["bytes"] if field == "max_bytes" else state["messages"]
    return bool(stored > limit) and wanted.config.get("discard") == "old"
