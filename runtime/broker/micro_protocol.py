"""Discovery answers and endpoint answers of micro services. Pure: needs no connection.

Source: NATS ADR-32 (Service API), revision 6, and the JSON schemas that the `nats` command line
checks every answer against: one badly typed value hides a service from `nats micro ls` and ends
`nats micro stats` for all services.
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

import orjson

from runtime.broker.headers import escape
from runtime.errors import ConfigError, Problem
from runtime.message import Message
from runtime.observe.logs import get_logger
from runtime.subjects import AUTH_REQUESTS, HOST_SUBJECTS

log = get_logger("runtime.broker.micro")

Verb = Literal["PING", "INFO", "STATS"]
VERBS: Final[tuple[Verb, ...]] = ("PING", "INFO", "STATS")

ERROR_HEADER: Final = "Nats-Service-Error"
ERROR_CODE_HEADER: Final = "Nats-Service-Error-Code"
DEFAULT_QUEUE_GROUP: Final = "q"
MAX_LAST_ERROR_CHARACTERS: Final = 256

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PART = r"(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(
    rf"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:-{_PART}(?:\.{_PART})*)?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?",
    re.ASCII,
)

Live = Mapping[str, object] | Callable[[], Mapping[str, object]]
"""Fixed values, or a function that is called for them at each discovery request."""


# The subjects of JetStream and of the hosts are not inboxes.
_SERVER_INBOX = "$SYS._INBOX."
_NO_INBOX = ("$", *{f"{subject.partition('.')[0]}." for subject in HOST_SUBJECTS})
_DELIVERED = "Nats-Stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a request.

    Attributes:
        data: the payload.
        headers: headers of the answer; line breaks and non-ASCII in a value are escaped.
        error: HTTP status and reason code; None for a success.
    """

    data: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: tuple[int, str] | None = None

    @classmethod
    def failure(cls, status: int, code: str, detail: str, event_id: str = "") -> "Answer":
        """An error answer in the form that callers and the HTTP gateway expect.

        Args:
            status: HTTP status.
            code: reason code in upper snake case.
            detail: one sentence; sent to the caller as it is.
            event_id: id of the log line.
        """
        body = {"code": code, "detail": detail, "event_id": event_id}
        return cls(orjson.dumps(body), {}, (status, code))

    def wire_headers(self) -> dict[str, str] | None:
        """The headers to send; None, which is cheaper to send, when there are none."""
        headers = {name: escape(value) for name, value in self.headers.items()}
        if self.error is not None:
            status, code = self.error
            headers[ERROR_CODE_HEADER] = str(status)
            headers[ERROR_HEADER] = escape(code)
        return headers or None


@dataclass(slots=True)
class EndpointStats:
    """Counters of one endpoint, or of a function that is shown as a virtual endpoint."""

    num_requests: int = 0
    num_errors: int = 0
    processing_ns: int = 0
    last_error: str = ""

    def record(self, processing_ns: int, *, requests: int = 1) -> None:
        """Add requests (or messages) and the time that they took together."""
        self.num_requests += requests
        self.processing_ns += processing_ns

    def record_error(self, code: str, *, errors: int = 1) -> None:
        """Add failures among the recorded requests; the statistics show `code` to every client."""
        self.num_errors += errors
        self.last_error = code[:MAX_LAST_ERROR_CHARACTERS]


@dataclass(frozen=True, slots=True)
class MicroEndpoint:
    """One endpoint of a service.

    Attributes:
        name: letters, digits, `_` and `-`.
        subject: the subject of its requests; of a virtual endpoint, the subject that its function
            consumes.
        handle: answers a request; None makes the endpoint virtual: shown, but not listening.
        queue_group: one instance of the group gets each request; None: every instance gets it.
        metadata: values become strings.
        concurrency: the most requests that are handled at once.
        max_waiting: the most requests that wait; beyond that the answer is 429 at once.
        stats: additional values shown by `nats micro stats`, JSON's types.
        counters: updated by the service, or for a virtual endpoint by the binding.
    """

    name: str
    subject: str
    handle: Callable[[Message], Awaitable[Answer]] | None = None
    queue_group: str | None = DEFAULT_QUEUE_GROUP
    metadata: Live = field(default_factory=dict)
    concurrency: int = 16
    max_waiting: int = 1000
    stats: Callable[[], Mapping[str, object]] | None = None
    counters: EndpointStats = field(default_factory=EndpointStats)

    def __post_init__(self) -> None:
        check_name("endpoint", self.name)


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """The fields that every discovery answer of one instance begins with."""

    name: str
    version: str
    description: str | Callable[[], str]
    metadata: Live
    id: str = field(default_factory=lambda: secrets.token_hex(11))
    started: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat().replace("+00:00", "Z")
    )

    def __post_init__(self) -> None:
        check_name("service", self.name)
        if not _SEMVER.fullmatch(self.version):
            wrong = f"{self.version!r} is not a semantic version"
            problem = Problem(f"service {self.name}", "version", wrong, "write it like 1.4.0")
            raise ConfigError([problem])


def check_name(kind: str, name: str) -> None:
    """Refuse a name that cannot be part of a subject.

    Raises:
        ConfigError: the name is empty or has characters other than letters, digits, `_` and `-`.
    """
    if not _NAME.fullmatch(name):
        wrong = f"{name!r} cannot be the name of a micro service's {kind}"
        problem = Problem(f"{kind} {name}", "name", wrong, "use letters, digits, _ and - only")
        raise ConfigError([problem])


def describe(verb: Verb, identity: ServiceIdentity, endpoints: list[MicroEndpoint]) -> bytes:
    """The answer to PING, INFO or STATS."""
    document: dict[str, object] = {
        "type": f"io.nats.micro.v1.{verb.lower()}_response",
        "name": identity.name,
        "id": identity.id,
        "version": identity.version,
        "metadata": _texts(identity.metadata),
    }
    if verb == "INFO":
        described = identity.description
        document["description"] = described() if callable(described) else described
        document["endpoints"] = [_declaration(endpoint) for endpoint in endpoints]
    elif verb == "STATS":
        document["started"] = identity.started
        document["endpoints"] = [_statistics(endpoint) for endpoint in endpoints]
    return orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS)


def _place(endpoint: MicroEndpoint) -> dict[str, object]:
    return {
        "name": endpoint.name,
        "subject": endpoint.subject,
        "queue_group": endpoint.queue_group or "",
    }


def _declaration(endpoint: MicroEndpoint) -> dict[str, object]:
    return {**_place(endpoint), "metadata": _texts(endpoint.metadata)}


def _statistics(endpoint: MicroEndpoint) -> dict[str, object]:
    # First: the call makes a virtual endpoint's binding update its counters.
    data = None if endpoint.stats is None else _ask(endpoint.stats)
    counters = endpoint.counters
    statistics = _place(endpoint)
    statistics["num_requests"] = counters.num_requests
    statistics["num_errors"] = counters.num_errors
    statistics["last_error"] = counters.last_error
    statistics["processing_time"] = counters.processing_ns
    # The command line divides a time by the number of requests: never a time without requests.
    statistics["average_processing_time"] = counters.processing_ns // max(counters.num_requests, 1)
    if data is not None:
        statistics["data"] = data
    return statistics


def _texts(values: Live) -> dict[str, str]:
    return {str(key): _text(value) for key, value in _ask(values).items()}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _ask(values: Live) -> Mapping[str, object]:
    if not callable(values):
        return values
    try:
        return values()
    except Exception:
        # The rest of the service should still be shown.
        log.exception("A service's live values could not be read")
        return {}


def is_request(message: Message) -> bool:
    """Whether the sender may publish the request and may receive its answer.

    JetStream delivers to any subject that a consumer, a pull request or a stream's republishing
    names, with the server's own rights. An answer is published with the host's rights, on the
    subject that the caller names. Neither may give a client more rights than the server grants it.
    The server itself asks on a subject where clients may not publish.
    """
    if message.subject == AUTH_REQUESTS and message.reply.startswith(_SERVER_INBOX):
        return _DELIVERED not in message.headers
    return not message.reply.startswith(_NO_INBOX) and _DELIVERED not in message.headers
