"""Builds the configurations of streams and consumers: the manifest's and the runtime's own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from runtime.errors import ConfigError, Problem
from runtime.manifest.model import (
    ConsumerBindingSpec,
    ConsumerSpec,
    FunctionSpec,
    Manifest,
    StreamSpec,
)
from runtime.manifest.values import Seconds

DEAD_LETTERS = "DEAD_LETTERS"
MAILBOX = "MAILBOX"
ADVISORIES = "ADVISORIES"
SCHEDULES = "SCHEDULES"
SWEEPER = "sweeper"

SCHEDULES_SINCE = (2, 12, 0)
"""First nats-server with message schedules and with atomic batches; an older server must not be
sent their fields."""

FUNCTION_METADATA = "runtime.function"
"""Metadata key of a consumer that names its function, for hosts that do not run the function."""

_MONTH = Seconds(30 * 86_400)
_HOUR = Seconds(3600)
_TEN_MINUTES = Seconds(600)

# A server reserves `max_bytes` at once, used or not. A manifest may set another value.
_DEAD_LETTERS_BYTES = 1_000_000_000

MAILBOX_BYTES = 2_000_000_000
"""Limit of parked bytes, enforced by the runtime. A server cannot enforce it: a stream with message
schedules takes no `discard: new` (nats-server 2.12), and `discard: old` would drop parked
messages."""

_RENAMED = {"replicas": "num_replicas"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A stream or consumer that the server must have.

    Attributes:
        stream: the stream's name.
        consumer: the consumer's durable name; empty for a stream.
        config: the configuration to create the object with, in JetStream's own terms.
        compared: the fields of `config` in which an existing object must agree.
        holds: whether the object is a consumer of a stream with retention `interest`, which drops
            messages that no consumer asks for.
    """

    stream: str
    consumer: str
    config: Mapping[str, Any]
    compared: frozenset[str]
    holds: bool = False

    @property
    def name(self) -> str:
        """The name for a person: `stream TELEMETRY`, `consumer TELEMETRY/ingest-workers`."""
        if self.consumer:
            return f"consumer {self.stream}/{self.consumer}"
        return f"stream {self.stream}"


def ns(seconds: float) -> int:
    """Convert to nanoseconds, JetStream's unit for durations."""
    return round(seconds * 1_000_000_000)


def stream_config(name: str, spec: StreamSpec) -> dict[str, Any]:
    """A stream's complete configuration, in fields that every server since 2.10 knows."""
    window_s = min(spec.duplicate_window, spec.max_age or spec.duplicate_window)
    return {
        "name": name,
        "subjects": list(spec.subjects),
        "retention": spec.retention,
        "storage": spec.storage,
        "discard": spec.discard,
        "max_age": ns(spec.max_age),
        "max_bytes": spec.max_bytes or -1,
        "max_msgs": spec.max_msgs or -1,
        "max_msgs_per_subject": spec.max_msgs_per_subject or -1,
        "max_msg_size": spec.max_msg_size or -1,
        "duplicate_window": ns(window_s),
        "num_replicas": spec.replicas,
        "description": spec.description,
        "max_consumers": -1,
        "allow_direct": True,
    }


def consumer_config(
    durable: str, spec: ConsumerSpec, *, max_attempts: int | None = None, function: str = ""
) -> dict[str, Any]:
    """A durable pull consumer's configuration.

    The configuration has no `backoff`: the server would add it to the delay of a NAK, and it would
    shorten the ack wait.

    Args:
        durable: the consumer's name.
        spec: the manifest's settings.
        max_attempts: the most deliveries of a message when the spec sets none; None means
            unlimited.
        function: the function that consumes; stored in the metadata.
    """
    config: dict[str, Any] = {
        "name": durable,
        "durable_name": durable,
        "description": spec.description or (f"function {function}" if function else ""),
        "ack_policy": "explicit",
        "deliver_policy": spec.deliver,
        "replay_policy": "instant",
        "ack_wait": ns(spec.ack_wait),
        "max_ack_pending": spec.max_ack_pending,
        "max_deliver": spec.max_deliver or max_attempts or -1,
        "filter_subjects": list(spec.filter_subjects),
    }
    if function:
        config["metadata"] = {FUNCTION_METADATA: function}
    return config


def mailbox_consumer_config(function: str, spec: FunctionSpec) -> dict[str, Any]:
    """The consumer of a function's mailbox: parked messages that are due, and redriven messages."""
    binding = spec.consumer or ConsumerBindingSpec(stream=MAILBOX)
    narrowed = binding.model_copy(
        update={
            "filter_subjects": (f"mailbox.ready.{function}",),
            "deliver": "all",
            "description": f"mailbox of function {function}",
        }
    )
    return consumer_config(function, narrowed, max_attempts=spec.max_deliveries, function=function)


def spill_consumer_config(
    durable: str, subject: str, function: str, spec: FunctionSpec
) -> dict[str, Any]:
    """The consumer of a spill queue; the server deletes it after a long time without requests."""
    binding = (spec.consumer or ConsumerBindingSpec(stream=MAILBOX)).model_copy(
        update={
            "filter_subjects": (subject,),
            "deliver": "all",
            "description": f"spill queue of function {function}",
        }
    )
    config = consumer_config(durable, binding, max_attempts=spec.max_deliveries, function=function)
    # A host whose places are all taken by long calls sends no pull requests meanwhile.
    return {**config, "inactive_threshold": ns(_HOUR + spec.timeout)}


def sweeper_consumer_config() -> dict[str, Any]:
    """The sweeper's consumer of advisories, which all hosts share."""
    spec = ConsumerSpec(max_ack_pending=1000, description="makes dead letters of advisories")
    return consumer_config(SWEEPER, spec)


def runtime_streams(server_version: tuple[int, int, int]) -> dict[str, dict[str, Any]]:
    """The configurations of the streams that the runtime itself needs, by name."""
    dead_letters = StreamSpec(
        subjects=("dead_letters.>",),
        max_age=_MONTH,
        max_bytes=_DEAD_LETTERS_BYTES,
        # When full, it refuses: a message that was given up stays in its stream, and none is lost.
        discard="new",
        # After a lost acknowledgement a function gives the message up once more, an ack wait later.
        duplicate_window=_HOUR,
        description="messages that were given up, with the reason and enough to redrive them",
    )
    mailbox = StreamSpec(
        subjects=("mailbox.>",),
        retention="workqueue",
        duplicate_window=_TEN_MINUTES,
        description="parked and redriven messages, one mailbox for each function",
    )
    advisories = StreamSpec(
        subjects=("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>",),
        retention="workqueue",
        max_age=_MONTH,
        description="messages whose every delivery ended without an answer",
    )
    configs = {
        DEAD_LETTERS: stream_config(DEAD_LETTERS, dead_letters),
        MAILBOX: stream_config(MAILBOX, mailbox),
        ADVISORIES: stream_config(ADVISORIES, advisories),
    }
    if server_version >= SCHEDULES_SINCE:
        # The server allows roll-ups by itself: a schedule replaces the one before on its subject.
        configs[MAILBOX] |= {
            "allow_msg_schedules": True,
            "allow_rollup_hdrs": True,
            "allow_atomic": True,
        }
    return configs


def wanted_by_runtime(
    server_version: tuple[int, int, int], overrides: Mapping[str, StreamSpec] | None = None
) -> list[Wanted]:
    """The runtime's own streams and consumers; a manifest may set their limits and replicas.

    Raises:
        ConfigError: a manifest gives one of them other subjects, retention or storage.
    """
    problems: list[Problem] = []
    wanted = []
    for name, config in runtime_streams(server_version).items():
        spec = (overrides or {}).get(name)
        stated: dict[str, Any] = {}
        if spec is not None:
            stated = _stated(name, spec)
            problems += [
                Problem(
                    f"stream {name}",
                    field,
                    f"the runtime's own stream cannot have {stated[field]!r}",
                    f"write {config[field]!r} or leave the field out",
                )
                for field in ("subjects", "retention")
                if field in stated and stated[field] != config[field]
            ]
        compared = {
            "subjects",
            "allow_msg_schedules",
            "allow_atomic",
            *(("max_bytes", "discard") if name == DEAD_LETTERS else ()),
        } & config.keys() | stated.keys()
        wanted.append(Wanted(name, "", {**config, **stated}, frozenset(compared)))
    if problems:
        raise ConfigError(problems)
    return [*wanted, _consumer(ADVISORIES, SWEEPER, sweeper_consumer_config(), ConsumerSpec())]


def wanted_by_manifest(manifest: Manifest) -> list[Wanted]:
    """The streams and consumers that the manifest declares, streams first.

    Raises:
        ConfigError: two places of the manifests contradict each other about one consumer.
    """
    problems: list[Problem] = []
    streams = [
        Wanted(name, "", stream_config(name, spec), frozenset(_stated(name, spec)))
        for name, spec in manifest.streams.items()
        if name not in (DEAD_LETTERS, MAILBOX, ADVISORIES)
    ]
    consumers: list[Wanted] = []
    bound: dict[tuple[str, str], str] = {}
    for function, spec in manifest.functions.items():
        if spec.schedule:
            # A schedule's ticks are consumed too, and may have to be parked or redriven.
            mailbox = mailbox_consumer_config(function, spec)
            consumers.append(_consumer(MAILBOX, function, mailbox, ConsumerSpec()))
        if spec.consumer is None:
            continue
        key = (spec.consumer.stream, durable_name(function, spec.consumer))
        if key in bound:
            problems.append(_shared_durable(key, bound[key], function))
            continue
        bound[key] = function
        declared = _declared(manifest, key)
        problems += _contradictions(key, function, spec.consumer, declared)
        consumers += _of_function(key, function, spec, _merged(spec.consumer, declared))
    ticking = {
        tick_consumer(name): name for name, spec in manifest.functions.items() if spec.schedule
    }
    consumers += [
        _consumer(
            name,
            durable,
            consumer_config(
                durable, consumer, function=ticking.get(durable, "") if name == SCHEDULES else ""
            ),
            consumer,
        )
        for name, stream in manifest.streams.items()
        for durable, consumer in stream.consumers.items()
        if (name, durable) not in bound
    ]
    if problems:
        raise ConfigError(problems)
    by_interest = {name for name, spec in manifest.streams.items() if spec.retention == "interest"}
    return streams + [replace(each, holds=each.stream in by_interest) for each in consumers]


def durable_name(function: str, binding: ConsumerBindingSpec) -> str:
    """The durable that a function consumes from: its own name unless the manifest gives another."""
    return binding.durable or function


def tick_consumer(function: str) -> str:
    """The durable consumer of a scheduled function's ticks."""
    return f"schedule-{function}"


def _stated(name: str, spec: StreamSpec) -> dict[str, Any]:
    """The fields that the manifest itself sets, in JetStream's terms; only they are compared."""
    config = stream_config(name, spec)
    fields = spec.model_fields_set - {"consumers"}
    return {key: config[key] for key in (_RENAMED.get(field, field) for field in sorted(fields))}


def _consumer(stream: str, durable: str, config: Mapping[str, Any], spec: ConsumerSpec) -> Wanted:
    compared = {
        "ack_policy", "ack_wait", "max_ack_pending", "max_deliver", "filter_subjects", "backoff",
        "deliver_subject",
    }  # fmt: skip
    if "metadata" in config:
        compared.add("metadata")
    # A consumer's start matters only at its creation; an existing consumer keeps its position.
    if "deliver" in spec.model_fields_set:
        compared.add("deliver_policy")
    if spec.description:
        compared.add("description")
    return Wanted(stream, durable, config, frozenset(compared))


def _of_function(
    key: tuple[str, str], function: str, spec: FunctionSpec, binding: ConsumerBindingSpec
) -> list[Wanted]:
    config = consumer_config(key[1], binding, max_attempts=spec.max_deliveries, function=function)
    mailbox = mailbox_consumer_config(function, spec.model_copy(update={"consumer": binding}))
    return [
        _consumer(*key, config, binding),
        _consumer(MAILBOX, function, mailbox, ConsumerSpec()),
    ]


def _declared(manifest: Manifest, key: tuple[str, str]) -> ConsumerSpec | None:
    stream = manifest.streams.get(key[0])
    return stream.consumers.get(key[1]) if stream is not None else None


def _merged(binding: ConsumerBindingSpec, declared: ConsumerSpec | None) -> ConsumerBindingSpec:
    if declared is None:
        return binding
    added = declared.model_fields_set - binding.model_fields_set
    return binding.model_copy(update={field: getattr(declared, field) for field in added})


def _contradictions(
    key: tuple[str, str], function: str, binding: ConsumerBindingSpec, declared: ConsumerSpec | None
) -> Iterable[Problem]:
    stated = declared.model_fields_set if declared is not None else set()
    for field in sorted(binding.model_fields_set & stated):
        ours, theirs = getattr(binding, field), getattr(declared, field)
        if ours != theirs:
            yield Problem(
                f"function {function}",
                f"consumer.{field}",
                f"{ours!r} contradicts {theirs!r} in stream {key[0]}'s consumers.{key[1]}",
                "say it in one of the two places",
            )


def _shared_durable(key: tuple[str, str], first: str, second: str) -> Problem:
    return Problem(
        f"function {second}",
        "consumer.durable",
        f"function {first} consumes from durable {key[1]} of stream {key[0]} too, "
        "so each would get only a part of the messages",
        "give the two functions durables of their own",
    )
