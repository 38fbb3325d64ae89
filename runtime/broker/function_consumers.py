"""Lists, pauses and resumes the consumers of functions, found by their metadata.

A function consumes its stream and its mailbox, so it has two consumers. The server itself pauses a
consumer, so the pause holds on every host, also on hosts that start later. Pull requests stay open
and get their heartbeats, so a host's pull loop does not notice the pause. Source: NATS ADR-41
(consumer pause).
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runtime.broker import stored
from runtime.broker.connection import ApiError, Broker
from runtime.broker.stream_configs import FUNCTION_METADATA, MAILBOX
from runtime.errors import ConfigError, Problem, Unavailable

PAUSE_SINCE = (2, 11, 0)
"""First nats-server that can pause a consumer; an older server does not answer the request."""

FOR_EVER = datetime(2200, 1, 1, tzinfo=UTC)
"""The end of a pause without an end: JetStream knows only pauses with an end."""

_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class FunctionConsumer:
    """One of a function's consumers.

    Attributes:
        pending: messages that the server has not delivered to it yet.
        ack_pending: messages that are delivered and not settled.
        redelivered: those of `ack_pending` that were delivered more than once.
        paused_until: end of the pause; None when the consumer is not paused.
    """

    function: str
    stream: str
    durable: str
    pending: int
    ack_pending: int
    redelivered: int
    paused_until: datetime | None = None

    @property
    def name(self) -> str:
        """The name for a person: `TELEMETRY/ingest-workers`."""
        return f"{self.stream}/{self.durable}"


async def find_consumers(broker: Broker) -> dict[str, list[FunctionConsumer]]:
    """The consumers of each function, its mailbox's last, whether or not a host runs the function.

    Raises:
        Unavailable: JetStream does not answer.
    """
    found: dict[str, list[FunctionConsumer]] = defaultdict(list)
    async for stream in _pages(broker, "STREAM.NAMES", "streams"):
        async for consumer in _consumers_of(broker, stream):
            if function := (consumer["config"].get("metadata") or {}).get(FUNCTION_METADATA):
                found[function].append(_read(function, consumer))
    for consumers in found.values():
        consumers.sort(key=lambda consumer: (consumer.stream == MAILBOX, consumer.name))
    return dict(found)


async def pause(broker: Broker, consumers: Iterable[FunctionConsumer], until: datetime) -> None:
    """Pause these consumers: the server delivers nothing to them before `until`.

    Messages that were delivered before are still worked on and settled.

    Raises:
        ConfigError: the server is older than `PAUSE_SINCE`.
        Unavailable: JetStream does not answer.
    """
    stamp = until.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    await _write_pauses(broker, consumers, {"pause_until": stamp})


async def resume(broker: Broker, consumers: Iterable[FunctionConsumer]) -> None:
    """Resume these consumers; a consumer that is not paused stays as it is.

    Raises:
        ConfigError: the server is older than `PAUSE_SINCE`.
        Unavailable: JetStream does not answer.
    """
    await _write_pauses(broker, consumers, {})


async def count_parked(broker: Broker, function: str) -> int:
    """How many messages of the function are parked.

    Raises:
        Unavailable: JetStream does not answer.
    """
    # A batch of one tells how many messages follow; counting by subject would list every message.
    # Source: NATS ADR-31 (direct get), servers since 2.11; message schedules came with 2.12.
    payload = {"seq": 1, "next_by_subj": f"mailbox.parked.{function}.>", "batch": 1}
    try:
        first = await broker.request(f"$JS.API.DIRECT.GET.{MAILBOX}", json.dumps(payload).encode())
    except Unavailable as failure:
        if failure.reason == "no responders":
            return 0
        raise
    if "Nats-Sequence" not in first.headers:
        return 0
    return 1 + int(first.headers.get("Nats-Num-Pending", "0"))


async def _write_pauses(
    broker: Broker, consumers: Iterable[FunctionConsumer], payload: dict[str, str]
) -> None:
    check_pausing(broker.server_version)
    for consumer in consumers:
        await broker.api(f"CONSUMER.PAUSE.{consumer.stream}.{consumer.durable}", payload)


def check_pausing(server_version: tuple[int, int, int]) -> None:
    """Refuse a server that cannot pause.

    Raises:
        ConfigError: the server is older than `PAUSE_SINCE`.
    """
    if server_version < PAUSE_SINCE:
        version = ".".join(str(part) for part in server_version)
        wrong = f"nats-server {version} cannot pause a consumer"
        remedy = "use 2.11 or newer, or stop the hosts that run the function"
        raise ConfigError([Problem("NATS", "", wrong, remedy)])


async def _consumers_of(broker: Broker, stream: str) -> AsyncIterator[dict[str, Any]]:
    try:
        async for consumer in _pages(broker, f"CONSUMER.LIST.{stream}", "consumers"):
            yield consumer
    except ApiError as error:
        # The consumer was deleted since it was listed.
        if error.code != _NOT_FOUND:
            raise


async def _pages(broker: Broker, subject: str, field: str) -> AsyncIterator[Any]:
    offset = 0
    while True:
        page = await broker.api(subject, {"offset": offset})
        entries = page.get(field) or []
        for entry in entries:
            yield entry
        offset += len(entries)
        if not entries or offset >= page.get("total", 0):
            return


def _read(function: str, consumer: dict[str, Any]) -> FunctionConsumer:
    until_ns = 0
    if consumer.get("paused"):
        until_ns = stored.parse_time_ns(consumer["config"]["pause_until"])
    return FunctionConsumer(
        function=function,
        stream=consumer["stream_name"],
        durable=consumer["name"],
        pending=consumer["num_pending"],
        ack_pending=consumer["num_ack_pending"],
        redelivered=consumer["num_redelivered"],
        paused_until=datetime.fromtimestamp(until_ns // 10**9, tz=UTC) if until_ns else None,
    )
