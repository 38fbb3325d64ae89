"""Models of a manifest's entries, with all their limits. `reader` reads the YAML."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from runtime.manifest.positions import Positions
from runtime.manifest.rate import Rate
from runtime.manifest.trigger import Cron, Interval, Trigger, check_cron, check_zone

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_SIZE_UNITS_BYTES = {
    "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip


class Seconds(float):
    """A number of seconds, for code that gives a duration to a model."""


def parse_duration(value: object) -> float:
    """Parse a duration such as `250ms`, `30s`, `1h30m` or `7d` to seconds.

    Raises:
        ValueError: anything else, a bare number included, as its unit would be a guess.
    """
    if isinstance(value, Seconds):
        return value
    if isinstance(value, str):
        parts = _DURATION.findall(value.strip())
        if parts and "".join(number + unit for number, unit in parts) == value.strip():
            return sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
    raise ValueError(f"{value!r} is not a duration; write it like 250ms, 30s, 5m, 1h30m or 7d")


def parse_size(value: object) -> int:
    """Parse a size such as `8192`, `64KB`, `1GB` (powers of 1000) or `1GiB` (powers of 1024).

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
        return int(float(found[1]) * _SIZE_UNITS_BYTES[found[2] or "B"])
    raise ValueError(f"{value!r} is not a size; write it like 8192, 64KB, 512MB or 1GiB")


def check_subject(subject: str) -> str:
    """The subject, if it is valid in NATS.

    Raises:
        ValueError: a `>` is anywhere but alone at the end.
    """
    if ">" in subject.split(".")[:-1]:
        raise ValueError(f"{subject!r} has a > in the middle; > may only be the last part")
    return subject


Duration = Annotated[float, BeforeValidator(parse_duration, json_schema_input_type=str)]
Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str)]
NAME_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
MODULE_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
HANDLER_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
SUBJECT_PATTERN = r"^[^\s.]+(\.[^\s.]+)*$"
HTTP_PATH_PATTERN = r"^/[A-Za-z0-9_\-./{}]*$"
FIELD_PATTERN = r"^([^\s.]+\.)*[^\s.]+$"
QUEUE_GROUP_PATTERN = r"^[^\s]*$"
LINK_NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9 _-]{0,10}$"
LINK_URL_PATTERN = r"^[a-z][a-z0-9+.-]*://[!-~]+$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ModulePath = Annotated[str, StringConstraints(pattern=MODULE_PATTERN)]
Subject = Annotated[
    str,
    StringConstraints(pattern=SUBJECT_PATTERN, max_length=255),
    AfterValidator(check_subject),
]
LinkName = Annotated[str, StringConstraints(pattern=LINK_NAME_PATTERN)]
LinkUrl = Annotated[str, StringConstraints(pattern=LINK_URL_PATTERN, max_length=255)]
CronExpression = Annotated[str, StringConstraints(max_length=255), AfterValidator(check_cron)]


class Model(BaseModel):
    """Base of all models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ConsumerSpec(Model):
    """A durable JetStream pull consumer. Source: NATS API `consumer_configuration`."""

    filter_subjects: tuple[Subject, ...] = ()
    deliver: Literal["all", "new", "last"] = "all"
    ack_wait: Annotated[Duration, Field(ge=1, le=86400)] = 30.0
    max_ack_pending: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    max_deliver: Annotated[int, Field(ge=-1, le=1000)] | None = None
    description: Annotated[str, StringConstraints(max_length=4096)] = ""


class StreamSpec(Model):
    """A JetStream stream. Source: NATS API `stream_configuration`. -1 means no limit."""

    subjects: Annotated[tuple[Subject, ...], Field(min_length=1)]
    retention: Literal["limits", "interest", "workqueue"] = "limits"
    storage: Literal["file", "memory"] = "file"
    discard: Literal["old", "new"] = "old"
    max_age: Annotated[Duration, Field(ge=0)] = 0.0
    max_bytes: Annotated[Size, Field(ge=-1)] = -1
    max_msgs: Annotated[int, Field(ge=-1)] = -1
    max_msgs_per_subject: Annotated[int, Field(ge=-1)] = -1
    max_msg_size: Annotated[Size, Field(ge=-1)] = -1
    duplicate_window: Annotated[Duration, Field(ge=0.1)] = 120.0
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    description: Annotated[str, StringConstraints(max_length=4096)] = ""
    consumers: dict[Name, ConsumerSpec] = Field(default_factory=dict)


class ConsumerBindingSpec(ConsumerSpec):
    """Binds a function to a durable consumer of a stream."""

    stream: Name
    durable: Name | None = None

    def durable_of(self, function: str) -> str:
        """The consumer's name: as written, or else the function's own."""
        return self.durable or function


class BatchSpec(Model):
    """When the function is called with a batch: at the first of these limits that is reached."""

    size: Annotated[int, Field(ge=1, le=10_000)] = 500
    bytes: Annotated[Size, Field(ge=1)] = 2_000_000
    wait: Annotated[Duration, Field(ge=0, le=300)] = 0.05


class RetrySpec(Model):
    """Backoff of failed messages: exponential, or an explicit schedule.

    The wait after attempt n is `delay * factor**(n-1)`, at most `cap`, plus or minus the share
    `jitter`. With `schedule` there is one attempt more than it has entries.
    """

    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    delay: Annotated[Duration, Field(gt=0, le=86400)] = 1.0
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    cap: Annotated[Duration, Field(gt=0, le=7 * 86400)] = 300.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2
    schedule: tuple[Annotated[Duration, Field(gt=0, le=7 * 86400)], ...] = ()

    @property
    def max_attempts(self) -> int:
        """The most attempts of a message before it becomes a dead letter."""
        return len(self.schedule) + 1 if self.schedule else self.attempts


class KeySpec(Model):
    """The key of a message: a token of its subject, or a field of its payload.

    Attributes:
        token: number of the subject's token, 1 for the first.
        field: path of the field in a JSON payload, names joined by dots.
    """

    token: Annotated[int, Field(ge=1, le=64)] | None = None
    field: Annotated[str, StringConstraints(pattern=FIELD_PATTERN, max_length=255)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "KeySpec":
        if (self.token is None) == (self.field is None):
            found = "neither token nor field" if self.token is None else "both token and field"
            raise ValueError(f"{found} found; write exactly one of token, field")
        return self


class RateSpec(Model):
    """Token bucket of one host: `burst` messages at once, then `limit` a second.

    Without `burst` the burst is a tenth of a second's messages, so that a short delay does not
    lower the rate.
    """

    limit: Rate
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class HttpSpec(Model):
    """How the gateway exposes an endpoint. `{name}` in the path becomes a field of the payload."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: Annotated[str, StringConstraints(pattern=HTTP_PATH_PATTERN, max_length=255)]
    auth: Literal["admin", "none"] = "admin"
    status: Annotated[int, Field(ge=200, le=299)] = 200


class EndpointBindingSpec(Model):
    """Binds a function to a subject of a NATS micro service."""

    subject: Subject
    service: Name | None = None
    queue_group: Annotated[str, StringConstraints(pattern=QUEUE_GROUP_PATTERN, max_length=64)] = "q"
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 1000
    description: Annotated[str, StringConstraints(max_length=4096)] = ""
    http: HttpSpec | None = None


class ScheduleBindingSpec(Model):
    """Binds a function to a schedule; each tick is called once in the whole cluster.

    `missed` decides about ticks that no host could run: `skip` them, or run `once` for all of them
    together as soon as a host can.
    """

    every: Annotated[Duration, Field(ge=1)] | None = None
    cron: CronExpression | None = None
    timezone: Annotated[str, AfterValidator(check_zone)] = "UTC"
    missed: Literal["skip", "once"] = "skip"
    at_start: bool = False

    @model_validator(mode="after")
    def _one_trigger(self) -> "ScheduleBindingSpec":
        if (self.every is None) == (self.cron is None):
            found = "neither every nor cron" if self.every is None else "both every and cron"
            raise ValueError(f"{found} found; write exactly one of every, cron")
        if self.every is not None and "timezone" in self.model_fields_set:
            raise ValueError("timezone has no effect with every; remove it, or use cron")
        return self

    @property
    def trigger(self) -> Trigger:
        """The trigger, which computes when the function is due."""
        if self.cron is not None:
            return Cron(self.cron, self.timezone)
        return Interval(self.every or 0.0)


BINDINGS = ("consumer", "endpoint", "schedule", "service")


def check_bindings(bound: Iterable[str]) -> None:
    """Check that a function has exactly one binding.

    Raises:
        ValueError: there is no binding, or more than one.
    """
    found = list(bound)
    if len(found) != 1:
        raise ValueError(
            f"{' and '.join(found) or 'no binding'} found;"
            f" write exactly one of {', '.join(BINDINGS)}"
        )


DEFAULT_BYTE_BUDGET = 4_000_000


class FunctionSpec(Model):
    """One function: its handler and exactly one of the four `BINDINGS`.

    With `ordered_by` the messages of one key are worked on one after the other, in the order in
    which they were stored, across all hosts. With `fair_by`, whose default is `ordered_by`, the
    keys take turns, so that many messages of one key do not delay the others. `links` are addresses
    for people, which the host shows when it starts on a terminal.
    """

    handler: Annotated[str, StringConstraints(pattern=HANDLER_PATTERN)]
    consumer: ConsumerBindingSpec | None = None
    endpoint: EndpointBindingSpec | None = None
    schedule: ScheduleBindingSpec | None = None
    service: Literal[True] | None = None
    batch: BatchSpec = BatchSpec()
    retry: RetrySpec = RetrySpec()
    ordered_by: KeySpec | None = None
    fair_by: KeySpec | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_in_flight_bytes: Annotated[Size, Field(ge=64 * 1024)] | None = None
    rate: RateSpec | None = None
    timeout: Annotated[Duration, Field(gt=0, le=86400)] = 30.0
    start_timeout: Annotated[Duration, Field(gt=0, le=86400)] = 60.0
    isolate: bool = False
    uses: tuple[Literal["postgres", "http"], ...] = ()
    postgres_connections: Annotated[int, Field(ge=1, le=1000)] = 4
    settings: dict[str, Any] = Field(default_factory=dict)
    links: dict[LinkName, LinkUrl] = Field(default_factory=dict)
    description: Annotated[str, StringConstraints(max_length=1024)] = ""

    @property
    def fairness(self) -> KeySpec | None:
        """The fair key; None when messages are called in the order of arrival."""
        return self.fair_by or self.ordered_by

    @property
    def byte_budget(self) -> int:
        """The most bytes of the function's messages that one process holds.

        Requested messages are included, and so is a second batch that is collected during a call.
        The server closes a connection for which 64 MB wait, and ten functions share a connection.
        Source: nats-server's `max_pending`.
        """
        return self.max_in_flight_bytes or max(DEFAULT_BYTE_BUDGET, 2 * self.batch.bytes)

    @property
    def max_deliveries(self) -> int | None:
        """The most deliveries of a message by the server; None for no limit."""
        # When a host dies, all messages that wait behind its calls are redelivered.
        return None if self.ordered_by else self.retry.max_attempts

    @property
    def block_limit_s(self) -> float | None:
        """The longest block of an isolated function's loop: no call may take longer."""
        return None if self.service else self.timeout

    @model_validator(mode="after")
    def _one_binding(self) -> "FunctionSpec":
        check_bindings(name for name in BINDINGS if getattr(self, name))
        return self


class Manifest(Model):
    """The merged content of all manifest files.

    `migrations` names packages of database migrations, applied at start in the order of their
    names.
    """

    streams: dict[Name, StreamSpec] = Field(default_factory=dict)
    functions: dict[Name, FunctionSpec] = Field(default_factory=dict)
    migrations: dict[Name, ModulePath] = Field(default_factory=dict)
    _positions: Positions = PrivateAttr(default_factory=Positions)

    @property
    def positions(self) -> Positions:
        """The place of each entry in the files; empty when the manifest was not read from files."""
        return self._positions

    def placed_at(self, positions: Positions) -> "Manifest":
        """A copy of the manifest with the places of its entries."""
        placed = self.model_copy()
        placed._positions = positions  # noqa: SLF001 - a copy of this very class
        return placed
