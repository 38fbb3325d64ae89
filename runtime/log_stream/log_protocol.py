"""The messages between `runtime logs` and the hosts: a listener's request, and the lines.

A listener subscribes to an inbox of its own below `HOST_INBOX`, and publishes its request with that
inbox as the reply subject, again every few seconds. Each process sends lines there until the lease
of the last request has ended. Both subjects are closed to a client without a user name.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.message import Message
from runtime.observe.log_feed import RING_LINES, Line
from runtime.process_identity import ProcessIdentity
from runtime.subjects import HOST_INBOX

LOG_REQUESTS: Final = "_RUNTIME.logs"
LEASE_S: Final = 10.0
"""How long a process sends lines after a listener's last request."""
LONGEST_REQUEST: Final = 4096
MESSAGE_BYTES: Final = 128 * 1024
"""About the most bytes of lines in one message."""
REFUSED: Final = "TOO_MANY_LISTENERS"

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class LogRequest(BaseModel):
    """What a listener wants.

    Attributes:
        level: the least level, also below that of the process.
        function: pattern of functions' names; None for all lines.
        last: the most lines from before that the first request of a listener gets.
        since: time in ISO 8601, UTC; lines from before of this time or later come in any number.
        stop: the listener ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: LogLevel = "INFO"
    function: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    last: Annotated[int, Field(ge=0, le=RING_LINES)] = 0
    since: Annotated[str, Field(max_length=64)] = ""
    stop: bool = False

    def encode(self) -> bytes:
        """Encode for the wire."""
        return self.model_dump_json().encode()


def read_request(message: Message) -> LogRequest | None:
    """The request, or None for a message that is not a listener's.

    The reply subject must be one to which only operators may subscribe. What JetStream delivers to
    the subject of requests has another reply subject, or none.
    """
    if not message.reply.startswith(f"{HOST_INBOX}.") or message.unreadable is not None:
        return None
    if len(message.data) > LONGEST_REQUEST or "Nats-Stream" in message.headers:
        return None
    try:
        return LogRequest.model_validate_json(message.data)
    except ValidationError:
        return None


class ProcessLines(BaseModel):
    """One message of lines from one process.

    Attributes:
        feed: identifies the process from its start to its end; with a number it identifies a line.
        lines: numbers and entries.
        dropped: lines that found no room since the message before.
        first: whether the message answers a listener's first request. More of its lines may follow
            when `more` is set.
        knows: whether the process runs a function that matches the listener's pattern.
        refused: why the process does not send lines; empty if it does.
    """

    model_config = ConfigDict(frozen=True)

    feed: str
    host: str = ""
    pid: str = ""
    worker: str = ""
    lines: list[tuple[int, dict[str, object]]] = []
    dropped: Annotated[int, Field(ge=0)] = 0
    first: bool = False
    more: bool = False
    knows: bool = True
    refused: str = ""

    @property
    def place(self) -> str:
        """The process in few words: `web-1:4711`, or `web-1:4711/2` for its worker 2."""
        return f"{self.host}:{self.pid}" + (f"/{self.worker}" if self.worker else "")


def encode_lines(
    feed: str,
    process: ProcessIdentity,
    lines: Sequence[Line],
    *,
    dropped: int = 0,
    **more: bool | str,
) -> bytes:
    """Encode lines for the wire; each is JSON already."""
    head = orjson.dumps({"feed": feed, **process.as_metadata(), "dropped": dropped, **more})
    body = b",".join(b"[%d,%b]" % line for line in lines)
    return head[:-1] + b',"lines":[' + body + b"]}"


def in_messages(lines: Sequence[Line]) -> Iterator[Sequence[Line]]:
    """Divide lines into messages of about `MESSAGE_BYTES`; at least one, which may be empty."""
    part: list[Line] = []
    size = 0
    for line in lines:
        if part and size + len(line[1]) > MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line[1])
    yield part


__all__ = [
    "LEASE_S",
    "LOG_REQUESTS",
    "REFUSED",
    "LogLevel",
    "LogRequest",
    "ProcessLines",
    "encode_lines",
    "in_messages",
    "read_request",
]
