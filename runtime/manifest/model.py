"""Models of a manifest's entries, with all their limits. `reader` reads the YAML.

The text below a field is its meaning in `runtime schema` and in the manifest reference.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, StringConstraints, model_validator

from runtime.addresses import parse_networks
from runtime.manifest.positions import Positions
from runtime.manifest.rate import Rate
from runtime.manifest.trigger import Cron, Interval, Trigger, check_zone
from runtime.manifest.values import (
    FIELD_PATTERN,
    HANDLER_PATTERN,
    HTTP_PATH_PATTERN,
    QUEUE_GROUP_PATTERN,
    CronExpression,
    Duration,
    LinkName,
    LinkUrl,
    Model,
    ModulePath,
    Name,
    Size,
    Subject,
)


class ConsumerSpec(Model):
    """A durable JetStream pull consumer. Source: NATS API `consumer_configuration`."""

    filter_subjects: tuple[Subject, ...] = ()
    """Only these subjects. They may not overlap, nor those of another consumer of a work queue.
    Without it: everything in the stream."""
    deliver: Literal["all", "new", "last"] = "all"
    """Where a new consumer begins: `all` stored messages, only `new` messages, or the `last` stored
    message and all later ones."""
    ack_wait: Annotated[Duration, Field(ge=1, le=86400)] = 30.0
    """Time without a sign of life after which JetStream delivers a message again."""
    max_ack_pending: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
    """Unsettled messages on all hosts together."""
    max_deliver: Annotated[int, Field(ge=-1, le=1000)] | None = None
    """The server's own limit of deliveries, not below the attempts of the retry policy; -1 for
    none. Without it: from `retry`."""
    description: Annotated[str, StringConstraints(max_length=4096)] = ""
    """For people."""


class StreamSpec(Model):
    """A JetStream stream. Source: NATS API `stream_configuration`. -1 means no limit."""

    subjects: Annotated[tuple[Subject, ...], Field(min_length=1)]
    """The subjects that the stream stores. No two streams may overlap."""
    retention: Literal["limits", "interest", "workqueue"] = "limits"
    """How long a message is kept: `limits` until a limit below is reached, `interest` until every
    consumer has acknowledged it, `workqueue` until one has."""
    storage: Literal["file", "memory"] = "file"
    """Where messages are stored. Those in memory are lost when the server restarts."""
    discard: Literal["old", "new"] = "old"
    """What happens when the stream is full: `old` deletes the oldest message, `new` refuses the new
    message, and its publisher tries again."""
    max_age: Annotated[Duration, Field(ge=0)] = 0.0
    """Older messages are deleted; 0s for never."""
    max_bytes: Annotated[Size, Field(ge=-1)] = -1
    """The most bytes in the stream; -1 for no limit."""
    max_msgs: Annotated[int, Field(ge=-1)] = -1
    """The most messages in the stream; -1 for no limit."""
    max_msgs_per_subject: Annotated[int, Field(ge=-1)] = -1
    """The most messages of one subject; -1 for no limit."""
    max_msg_size: Annotated[Size, Field(ge=-1)] = -1
    """The largest message that the stream takes; -1 for no limit but the server's."""
    duplicate_window: Annotated[Duration, Field(ge=0.1)] = 120.0
    """How long the stream remembers a message id, so that a repeated publish stores nothing. At
    most `max_age`."""
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """Servers of the cluster that store each message."""
    description: Annotated[str, StringConstraints(max_length=4096)] = ""
    """For people."""
    consumers: dict[Name, ConsumerSpec] = Field(default_factory=dict)
    """Durable pull consumers that no function of these manifests binds, for other clients. Keys as
    under `consumer`, without `stream` and `durable`."""


class ConsumerDefaults(ConsumerSpec):
    """What functions with a consumer have in common."""

    stream: Name | None = None
    """A stream that one of the manifests declares."""


class ConsumerBindingSpec(ConsumerDefaults):
    """Binds a function to a durable consumer of a stream."""

    stream: Name
    """A stream that one of the manifests declares."""
    durable: Name | None = None
    """Name of the consumer. Hosts with the same durable share its messages. Without it: the
    function's name."""

    def durable_of(self, function: str) -> str:
        """The consumer's name: as written, or else the function's own."""
        return self.durable or function


class BatchSpec(Model):
    """When the function is called with a batch: at the first of these limits that is reached."""

    size: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Messages."""
    bytes: Annotated[Size, Field(ge=1)] = 2_000_000
    """Bytes of the messages together."""
    wait: Annotated[Duration, Field(ge=0, le=300)] = 0.05
    """Time since the first message."""


class RetrySpec(Model):
    """Backoff of failed messages: exponential, or an explicit schedule.

    The wait after attempt n is `delay * factor**(n-1)`, at most `cap`, plus or minus the share
    `jitter`. With `schedule` there is one attempt more than it has entries.
    """

    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Attempts after which a message is a dead letter."""
    delay: Annotated[Duration, Field(gt=0, le=86400)] = 1.0
    """Wait after the first failed attempt."""
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    """Each further wait is so many times longer."""
    cap: Annotated[Duration, Field(gt=0, le=7 * 86400)] = 300.0
    """The longest wait."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The share by which a wait varies at random, up or down."""
    schedule: tuple[Annotated[Duration, Field(gt=0, le=7 * 86400)], ...] = ()
    """The waits one by one, instead of the keys above: with three of them there are four
    attempts."""

    @property
    def max_attempts(self) -> int:
        """The most attempts of a message before it becomes a dead letter."""
        return len(self.schedule) + 1 if self.schedule else self.attempts


def _check_networks(text: str) -> str:
    try:
        parse_networks(text)
    except ValueError as failure:
        raise ValueError(f"{failure}; write networks such as 10.0.0.0/8") from None
    return text


Networks = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_check_networks)]


class KeySpec(Model):
    """The key of a message: a token of its subject, or a field of its payload."""

    token: Annotated[int, Field(ge=1, le=64)] | None = None
    """Number of the subject's part, 1 for the first."""
    field: Annotated[str, StringConstraints(pattern=FIELD_PATTERN, max_length=255)] | None = None
    """Path of the field in a JSON payload, names joined by dots."""

    @model_validator(mode="after")
    def _one_place(self) -> "KeySpec":
        if (self.token is None) == (self.field is None):
            found = "neither token nor field" if self.token is None else "both token and field"
            raise ValueError(f"{found} found; write exactly one of token, field")
        return self


class PrioritySpec(KeySpec):
    """The priority of a message: the level that a token of its subject or a field names."""

    weights: Annotated[dict[Name, Annotated[int, Field(ge=1, le=1000)]], Field(max_length=8)]
    """The levels, the most urgent first, each with its share of the turns: `{high: 8, bulk: 1}`."""
    default: Name
    """The level of a message that names none of them."""

    @model_validator(mode="after")
    def _known_default(self) -> "PrioritySpec":
        if len(self.weights) == 1:
            raise ValueError("one level alone found; write at least two under weights")
        if self.default not in self.weights:
            raise ValueError(
                f"the default {self.default!r} is not among the weights; write one of"
                f" {', '.join(self.weights)}"
            )
        return self


class RateSpec(Model):
    """Token bucket of one host: `burst` messages at once, then `limit` a second."""

    limit: Rate
    """Messages in a time, such as 50/s."""
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Messages at once. Without it: those of a tenth of a second, at least 1, so that a short delay
    does not lower the rate."""


class HttpClientSpec(Model):
    """Which addresses `ctx.http` connects to."""

    guard: bool = False
    """Whether it connects to public addresses alone, for URLs that others have chosen. Another
    address is refused when it would be connected to, whatever name leads there."""
    allowed_networks: Networks = ""
    """Networks that are allowed beside the public ones, by commas: `10.0.0.0/8, 127.0.0.1:8090`."""

    @model_validator(mode="after")
    def _has_effect(self) -> "HttpClientSpec":
        if self.allowed_networks and not self.guard:
            raise ValueError(
                "allowed_networks found without guard; without a guard every address is allowed:"
                " write guard: true"
            )
        return self


class HttpDefaults(Model):
    """What endpoints that are exposed by HTTP have in common."""

    auth: Literal["admin", "tenant", "bearer", "none"] = "admin"
    """Who may call it: `admin` asks for the admin key, `tenant` for a key of a tenant or the admin
    key, `bearer` for a token that the function checks, `none` for nothing. The gateway writes the
    tenant of a tenant's key into the field `tenant_id`."""
    status: Annotated[int, Field(ge=200, le=299)] = 200
    """The status of a successful answer."""


class HttpSpec(HttpDefaults):
    """How the gateway exposes an endpoint."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    """The method of the request."""
    path: Annotated[str, StringConstraints(pattern=HTTP_PATH_PATTERN, max_length=255)]
    """The path of the request. `{name}` in it becomes a field of the payload."""


class EndpointDefaults(Model):
    """What functions with an endpoint have in common."""

    service: Name | None = None
    """The micro service that lists the endpoint. Without it: the function's name."""
    queue_group: Annotated[str, StringConstraints(pattern=QUEUE_GROUP_PATTERN, max_length=64)] = "q"
    """Endpoints of one group share the requests. If empty, every host answers each request."""
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Requests that may wait for a free call. Further requests are answered 429."""
    http: HttpDefaults | None = None
    """Exposes the endpoint by HTTP."""


class EndpointBindingSpec(EndpointDefaults):
    """Binds a function to a subject of a NATS micro service."""

    subject: Subject
    """The subject of the requests. No stream may store it, and no other endpoint may overlap it."""
    description: Annotated[str, StringConstraints(max_length=4096)] = ""
    """For people. Without it: the function's."""
    http: HttpSpec | None = None
    """Exposes the endpoint by HTTP."""


class ScheduleDefaults(Model):
    """What functions with a schedule have in common."""

    timezone: Annotated[str, AfterValidator(check_zone)] = "UTC"
    """For `cron`: a name such as Europe/Vienna."""
    missed: Literal["skip", "once"] = "skip"
    """For ticks that no host could run: `skip` them, or run `once` for all of them together as soon
    as a host can."""
    at_start: bool = False
    """Whether the function is also called when a host starts, unless a tick came within the minute
    before."""


class ScheduleBindingSpec(ScheduleDefaults):
    """Binds a function to a schedule; each tick is called once in the whole cluster."""

    every: Annotated[Duration, Field(ge=1)] | None = None
    """An interval: ticks are due at its multiples since 1970 UTC. Either `every` or `cron`."""
    cron: CronExpression | None = None
    """Minute, hour, day of month, month, day of week: `*/5 * * * *`, `0 9 * * MON-FRI`,
    `0 0 L * *`. Either `every` or `cron`."""

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
        remedy = f"write exactly one of {', '.join(BINDINGS)}"
        if found:
            remedy += "; several stand under `triggers:`"
        raise ValueError(f"{' and '.join(found) or 'no binding'} found; {remedy}")


DEFAULT_BYTE_BUDGET = 4_000_000


class FunctionDefaults(Model):
    """What functions of one file have in common.

    A value is used by each function on which it has an effect and that does not write its own.
    `consumer`, `endpoint`, `schedule` and `endpoint.http` complete what a function writes under the
    same key, and give none to a function without it.
    """

    consumer: ConsumerDefaults | None = None
    """Messages of a stream call the function."""
    endpoint: EndpointDefaults | None = None
    """Requests call the function, and its return value is the answer."""
    schedule: ScheduleDefaults | None = None
    """The clock calls the function."""
    batch: BatchSpec = BatchSpec()
    """When a batch is complete, for handlers that take a `Batch`."""
    retry: RetrySpec = RetrySpec()
    """When a failed message is tried again."""
    ordered_by: KeySpec | None = None
    """One message of a key runs at a time, in order, across all hosts."""
    fair_by: KeySpec | None = None
    """Keys take turns, so that many messages of one key do not delay the others. Without it: as
    `ordered_by`."""
    priority_by: PrioritySpec | None = None
    """Levels take turns by their weights, so that many messages of a low level do not delay those
    of a high one, and no level waits for ever. Not together with `ordered_by`."""
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Calls at the same time in one process."""
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Messages fetched and not yet settled in one process. Without it: from `concurrency` and
    `batch`."""
    max_in_flight_bytes: Annotated[Size, Field(ge=64 * 1024)] | None = None
    """The size of these messages, including the bytes that a pull request asks for. Without it:
    4MB, or twice `batch.bytes`."""
    rate: RateSpec | None = None
    """How many messages one host may start in a time."""
    timeout: Annotated[Duration, Field(gt=0, le=86400)] = 30.0
    """Time limit of one call. It may exceed `ack_wait`, because the host tells the server that work
    goes on."""
    start_timeout: Annotated[Duration, Field(gt=0, le=86400)] = 60.0
    """Time limit of the module's `start`. When it is exceeded, the host does not start."""
    isolate: bool = False
    """Whether the function runs in a process of its own."""
    uses: tuple[Literal["postgres", "http", "nats_system"], ...] = ()
    """The resources that `ctx` gives: `postgres`, `http`."""
    postgres_connections: Annotated[int, Field(ge=1, le=1000)] = 4
    """PostgreSQL connections that the function's calls may hold together in one process. A call
    that waits for a connection uses up neither time nor an attempt."""
    http_client: HttpClientSpec = HttpClientSpec()
    """Which addresses `ctx.http` connects to; every one, unless it has a guard."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Values for the module's `Settings` model, which checks them."""


class TriggerSpec(FunctionDefaults):
    """One of several triggers of a handler."""

    consumer: ConsumerBindingSpec | None = None
    """Messages of a stream call the function."""
    endpoint: EndpointBindingSpec | None = None
    """Requests call the function, and its return value is the answer."""
    schedule: ScheduleBindingSpec | None = None
    """The clock calls the function."""
    description: Annotated[str, StringConstraints(max_length=1024)] = ""
    """For people. Without it: the first sentence of the handler's docstring."""


class FunctionSpec(TriggerSpec):
    """One function: its handler and exactly one of the four `BINDINGS`."""

    handler: Annotated[str, StringConstraints(pattern=HANDLER_PATTERN)]
    """`module:attribute`, or `module:object.method`. The host finds modules in the current folder
    and among the installed packages. It refuses a module name that Python or a library of the host
    already uses."""
    service: Literal[True] | None = None
    """The function runs as long as its process."""
    links: dict[LinkName, LinkUrl] = Field(default_factory=dict)
    """Web addresses, each under a name of at most 11 characters. The start-up screen shows them,
    except those with port 0."""
    needs: tuple[Name, ...] = ()
    """Functions that have to run for this one's work to go on, here or on another host: the one
    that publishes what this one queues, for example. `runtime check` and `serve` name those that
    the manifests do not have."""

    @property
    def fairness(self) -> KeySpec | None:
        """The fair key; None when messages are called in the order of arrival."""
        return self.fair_by or self.ordered_by

    @property
    def has_turns(self) -> bool:
        """Whether messages take turns, by a key or by a priority."""
        return self.fairness is not None or self.priority_by is not None

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
    """The merged content of all manifest files, with defaults and triggers resolved."""

    streams: dict[Name, StreamSpec] = Field(default_factory=dict)
    """Streams, by name."""
    functions: dict[Name, FunctionSpec] = Field(default_factory=dict)
    """Functions, by name."""
    migrations: dict[Name, ModulePath] = Field(default_factory=dict)
    """Packages of database migrations. The host applies them at start, in the order of their
    names."""
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
