"""Finds conflicts between the entries of a manifest; JetStream would refuse most of them.

Numbers in brackets are JetStream's error codes. Source: nats-server `server/errors.json`.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations

from runtime.errors import Problem
from runtime.manifest.endpoints import find_endpoint_conflicts
from runtime.manifest.idle_keys import IDLE_KEYS
from runtime.manifest.model import (
    ConsumerBindingSpec,
    FunctionSpec,
    KeySpec,
    Manifest,
    StreamSpec,
)
from runtime.manifest.positions import Path
from runtime.manifest.translation import suggest
from runtime.subjects import overlaps

_OWN_STREAMS = {
    "MAILBOX": "mailbox.>",
    "DEAD_LETTERS": "dead_letters.>",
    "ADVISORIES": "$JS.>",
    "SCHEDULES": "schedules.>",
    "LEASES": "leases.>",
}
"""Streams that the host creates for itself, and the subjects that are reserved for them."""
_READABLE = "DEAD_LETTERS"
"""The one of them that a function may consume, to act on what was given up."""
_SHORTEST_AGE_S = 0.1


def find_conflicts(manifest: Manifest, *, unknown: Collection[str] = ()) -> list[Problem]:
    """Find all conflicts between entries.

    Args:
        manifest: entries that are valid on their own.
        unknown: streams whose declaration is not valid, so that they cannot be checked.
    """
    consumers = list(_list_consumers(manifest))
    found = [
        *_check_streams(manifest),
        *_check_stream_overlaps(manifest),
        *_check_bound_streams(manifest, unknown),
        *_check_durables(consumers),
        *_check_filters(manifest, consumers),
        *_check_work_queues(manifest, consumers),
        *_check_limits(manifest),
        *_check_keys(manifest),
        *_check_idle_keys(manifest),
        *find_endpoint_conflicts(manifest),
    ]
    return [
        Problem(manifest.positions.where(*path), manifest.positions.field(*path), wrong, remedy)
        for path, wrong, remedy in found
    ]


Finding = tuple[Path, str, str]


@dataclass(frozen=True, slots=True)
class _Consumer:
    stream: str
    durable: str
    filters: tuple[str, ...]
    deliver: str
    path: Path

    @property
    def owner(self) -> str:
        return f"function {self.path[1]}" if self.path[0] == "functions" else "the stream itself"


def _list_consumers(manifest: Manifest) -> Iterator[_Consumer]:
    for stream, spec in manifest.streams.items():
        for durable, consumer in spec.consumers.items():
            path: Path = ("streams", stream, "consumers", durable)
            yield _Consumer(stream, durable, consumer.filter_subjects, consumer.deliver, path)
    for name, function in manifest.functions.items():
        if bound := function.consumer:
            path = ("functions", name, "consumer")
            filters = bound.filter_subjects
            yield _Consumer(bound.stream, bound.durable_of(name), filters, bound.deliver, path)


def _check_streams(manifest: Manifest) -> Iterator[Finding]:
    for name, spec in manifest.streams.items():
        path: Path = ("streams", name)
        if name in _OWN_STREAMS:
            yield path, f"the host makes a stream {name} itself", "use another name"
        for at, subject in enumerate(spec.subjects):
            for own, kept in _OWN_STREAMS.items():
                if overlaps(subject, kept):
                    wrong = f"{subject} overlaps {kept}, which the host keeps for {own}"
                    yield (*path, "subjects", at), wrong, "use narrower subjects"
        if 0 < spec.max_age < _SHORTEST_AGE_S:
            yield (*path, "max_age"), "is too short for JetStream", "use at least 100ms, or 0s"
        elif (
            0 < spec.max_age < spec.duplicate_window and "duplicate_window" in spec.model_fields_set
        ):
            yield (
                (*path, "duplicate_window"),
                f"{spec.duplicate_window:g}s is longer than max_age (10052)",
                f"use at most {spec.max_age:g}s",
            )


def _check_stream_overlaps(manifest: Manifest) -> Iterator[Finding]:
    owned = [
        (name, at, subject)
        for name, spec in manifest.streams.items()
        for at, subject in enumerate(spec.subjects)
    ]
    for (first, _, taken), (name, at, subject) in combinations(owned, 2):
        if overlaps(taken, subject):
            where = "of this stream too (10052)" if first == name else f"of stream {first} (10065)"
            yield (
                ("streams", name, "subjects", at),
                f"{subject} overlaps {taken} {where}",
                "let each subject belong to one stream only",
            )


def _check_bound_streams(manifest: Manifest, unknown: Collection[str]) -> Iterator[Finding]:
    for name, function in manifest.functions.items():
        if (bound := function.consumer) is None or bound.stream in unknown:
            continue
        if bound.stream == _READABLE:
            if not bound.filter_subjects:
                yield (
                    ("functions", name, "consumer", "filter_subjects"),
                    f"{_READABLE} has the dead letters of all functions, this one's too",
                    "name those to read, such as dead_letters.deliver_webhook",
                )
        elif bound.stream not in manifest.streams:
            yield (
                ("functions", name, "consumer", "stream"),
                f"no manifest declares a stream {bound.stream}",
                suggest(bound.stream, manifest.streams) + "; or declare it under `streams:`",
            )


def _check_durables(consumers: list[_Consumer]) -> Iterator[Finding]:
    for first, other in combinations(consumers, 2):
        if (first.stream, first.durable) == (other.stream, other.durable):
            yield (
                (*other.path, "durable"),
                f"durable {other.durable} of stream {other.stream} is taken by {first.owner}",
                "give each its own durable: sharing one would split the messages between them",
            )


def _check_filters(manifest: Manifest, consumers: list[_Consumer]) -> Iterator[Finding]:
    for consumer in consumers:
        stream = manifest.streams.get(consumer.stream)
        for at, subject in enumerate(consumer.filters):
            path = (*consumer.path, "filter_subjects", at)
            for earlier in consumer.filters[:at]:
                if overlaps(earlier, subject):
                    wrong = f"{subject} overlaps {earlier} of the same consumer (10138)"
                    yield path, wrong, "keep the wider of the two"
            if stream and not any(overlaps(subject, owned) for owned in stream.subjects):
                yield (
                    path,
                    f"stream {consumer.stream} stores nothing on {subject}",
                    f"its subjects are {', '.join(stream.subjects)}",
                )


def _check_work_queues(manifest: Manifest, consumers: list[_Consumer]) -> Iterator[Finding]:
    queues = {
        name: spec for name, spec in manifest.streams.items() if spec.retention == "workqueue"
    }
    mine = [consumer for consumer in consumers if consumer.stream in queues]
    for consumer in mine:
        if consumer.deliver != "all":
            wrong = f"work queue {consumer.stream} delivers everything (10101)"
            yield (*consumer.path, "deliver"), wrong, "use all"
    for first, other in combinations(mine, 2):
        if first.stream != other.stream or first.durable == other.durable:
            continue
        if clash := _first_overlap(first, other, queues[first.stream]):
            yield (
                (*other.path, "filter_subjects"),
                f"{clash[1]} overlaps {clash[0]} of {first.owner} on work queue"
                f" {other.stream} (10100)",
                "give each consumer of a work queue subjects of its own",
            )


def _first_overlap(
    first: _Consumer, other: _Consumer, stream: StreamSpec
) -> tuple[str, str] | None:
    for taken in first.filters or stream.subjects:
        for subject in other.filters or stream.subjects:
            if overlaps(taken, subject):
                return taken, subject
    return None


def _check_limits(manifest: Manifest) -> Iterator[Finding]:
    for stream, spec in manifest.streams.items():
        for durable, consumer in spec.consumers.items():
            if consumer.max_deliver == 0:
                yield _no_deliveries(("streams", stream, "consumers", durable, "max_deliver"))
    for name, function in manifest.functions.items():
        yield from _check_function_limits(("functions", name), function)


def _check_keys(manifest: Manifest) -> Iterator[Finding]:
    for name, function in manifest.functions.items():
        if (bound := function.consumer) is None or bound.stream not in manifest.streams:
            continue
        subjects = bound.filter_subjects or manifest.streams[bound.stream].subjects
        if function.ordered_by is not None and function.priority_by is not None:
            yield (
                ("functions", name, "priority_by"),
                "has no effect with `ordered_by`, which calls messages in their order",
                "remove one of the two",
            )
        for field in ("ordered_by", "fair_by", "priority_by"):
            spec: KeySpec | None = getattr(function, field)
            if spec is None or spec.token is None:
                continue
            for subject in subjects:
                tokens = subject.split(".")
                if spec.token > len(tokens) and tokens[-1] != ">":
                    yield (
                        ("functions", name, field, "token"),
                        f"{subject} has no part {spec.token}",
                        f"use 1 to {len(tokens)}, or a field of the payload",
                    )


def _check_idle_keys(manifest: Manifest) -> Iterator[Finding]:
    for name, function in manifest.functions.items():
        for binding, keys in IDLE_KEYS.items():
            for key in sorted(keys):
                if getattr(function, binding) and key in function.model_fields_set:
                    wrong = f"has no effect on a function with `{binding}:`"
                    yield ("functions", name, key), wrong, "remove it"


def _check_function_limits(path: Path, function: FunctionSpec) -> Iterator[Finding]:
    slots, bound, batch = function.max_in_flight, function.consumer, function.batch
    if slots is not None:
        written = function.model_fields_set
        if "concurrency" in written and slots < function.concurrency:
            yield (
                (*path, "max_in_flight"),
                f"{slots} messages never keep a concurrency of {function.concurrency} busy",
                f"use at least {function.concurrency}, or a lower concurrency",
            )
        if "batch" in written and slots < batch.size:
            yield (
                (*path, "max_in_flight"),
                f"{slots} messages never fill a batch of {batch.size}",
                f"use at least {batch.size}, or smaller batches",
            )
    budget = function.max_in_flight_bytes
    if budget is not None and "batch" in function.model_fields_set and budget < 2 * batch.bytes:
        yield (
            (*path, "max_in_flight_bytes"),
            f"{budget} bytes do not hold two batches of {batch.bytes} bytes",
            f"use at least {2 * batch.bytes}, or smaller batches",
        )
    if bound is not None:
        yield from _check_consumer_limits(path, function, bound)


def _check_consumer_limits(
    path: Path, function: FunctionSpec, bound: ConsumerBindingSpec
) -> Iterator[Finding]:
    slots, batch = function.max_in_flight or 0, function.batch
    needed = max(slots, batch.size if "batch" in function.model_fields_set else 0)
    if bound.max_ack_pending < needed:
        what = f"max_in_flight {slots}" if needed == slots else f"batch of {batch.size}"
        yield (
            (*path, "consumer", "max_ack_pending"),
            f"{bound.max_ack_pending} is less than the function's {what}",
            f"use at least {needed}, times the number of hosts",
        )
    attempts, limit = function.retry.max_attempts, bound.max_deliver
    if limit == 0:
        yield _no_deliveries((*path, "consumer", "max_deliver"))
    elif limit is not None and 0 < limit < attempts:
        yield (
            (*path, "consumer", "max_deliver"),
            f"the server would give up after {limit} deliveries, the retry policy after {attempts}",
            f"leave max_deliver out, or use at least {attempts}",
        )
    if batch.wait >= bound.ack_wait:
        yield (
            (*path, "batch", "wait"),
            f"{batch.wait:g}s is not shorter than ack_wait {bound.ack_wait:g}s,"
            " so waiting messages would be delivered again",
            "use a shorter wait or a longer ack_wait",
        )


def _no_deliveries(path: Path) -> Finding:
    return path, "0 would deliver nothing", "use -1 for no limit, or at least 1"
