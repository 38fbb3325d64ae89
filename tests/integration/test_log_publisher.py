"""Log lines over NATS: who gets them, which, how many, and for how long."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
import structlog
from nats.aio.client import Client

from runtime.broker.connection import Broker
from runtime.log_stream import log_publisher
from runtime.log_stream.log_protocol import LOG_REQUESTS, LogRequest, ProcessLines
from runtime.log_stream.log_publisher import LINES_AT_ONCE, MOST_LISTENERS, LogPublisher
from runtime.observe.log_feed import QUEUE_LINES, LogFeed
from runtime.process_identity import ProcessIdentity
from tests.support.host import eventually
from tests.support.servers import NatsServer

DEADLINE_S = 60.0
INBOX = "_INBOX.runtime.logs"


class Process:
    """A publisher of a feed of its own."""

    def __init__(self, broker: Broker) -> None:
        self.feed = LogFeed()
        self.feed.configure(logging.INFO, lambda _level: None)
        identity = ProcessIdentity("web-1", 4711, "2")
        self.publisher = LogPublisher(broker, identity, {"ingest": None}, self.feed)

    def log(self, event: str, level: str = "info", **fields: Any) -> None:
        entry = {"event": event, "level": level, "timestamp": "2026-01-01T00:00:00Z", **fields}
        try:
            self.feed(None, "", entry)
        except structlog.DropEvent:
            return


@pytest.fixture
async def process(broker: Broker) -> AsyncIterator[Process]:
    """A process that publishes log lines."""
    process = Process(broker)
    await process.publisher.start()
    await broker.flush()
    yield process
    await process.publisher.stop()


@pytest.fixture
async def client(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client of the client library, on a connection of its own."""
    connected = await nats.connect(nats_server.url)
    yield connected
    await connected.close()


class Listening:
    """A listener that a test drives by hand."""

    def __init__(self, client: Client, inbox: str = f"{INBOX}.one") -> None:
        self._client = client
        self._inbox = inbox

    async def begin(self, **request: Any) -> ProcessLines:
        self._subscription = await self._client.subscribe(self._inbox)
        await self.ask(**request)
        return await self.next()

    async def ask(self, **request: Any) -> None:
        data = LogRequest.model_validate(request).encode()
        await self._client.publish(LOG_REQUESTS, data, self._inbox)
        await self._client.flush()

    async def next(self) -> ProcessLines:
        message = await self._subscription.next_msg(DEADLINE_S)
        return ProcessLines.model_validate_json(message.data)


def texts(message: ProcessLines) -> list[object]:
    return [entry["event"] for _, entry in message.lines]


async def test_a_listener_gets_the_last_lines_and_then_each_new_one(
    process: Process, client: Client
) -> None:
    process.log("before", function="ingest")
    listening = Listening(client)

    first = await listening.begin(level="DEBUG", function="ing*", last=10)
    process.log("quiet", "debug", function="ingest")
    process.log("of another", function="deliver")
    process.log("loud", "error", function="ingest", reason="ü\n\x1b[31m")
    second = await listening.next()

    assert (first.place, first.first, first.knows) == ("web-1:4711/2", True, True)
    assert texts(first) == ["before"]
    assert texts(second) == ["quiet", "loud"]
    assert second.lines[-1][1]["reason"] == "ü\n\x1b[31m"
    assert second.lines[-1][0] > first.lines[-1][0]


async def test_a_name_that_no_function_has_is_told(process: Process, client: Client) -> None:
    first = await Listening(client).begin(function="absent")

    assert (first.knows, first.lines) == (False, [])


async def test_a_listener_that_ends_or_dies_costs_nothing_any_more(
    process: Process, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_quiet() -> bool:
        return process.feed.least == logging.INFO

    listening = Listening(client)
    await listening.begin(level="DEBUG")
    assert process.feed.least == logging.DEBUG
    await listening.ask(stop=True)
    await eventually(is_quiet, "the end of the listener")

    monkeypatch.setattr(log_publisher, "LEASE_S", 0.3)
    await Listening(client, f"{INBOX}.two").begin(level="DEBUG")
    assert process.feed.least == logging.DEBUG
    await eventually(is_quiet, "the end of the lease")


async def test_a_request_that_is_repeated_renews_the_lease_and_changes_the_level(
    process: Process, client: Client
) -> None:
    listening = Listening(client)
    await listening.begin(level="INFO")
    await listening.ask(level="DEBUG", last=100)
    process.log("quiet", "debug")

    async def listens() -> bool:
        process.log("quiet", "debug")
        return process.feed.least == logging.DEBUG

    await eventually(listens, "the new level")
    assert set(texts(await listening.next())) == {"quiet"}


async def test_of_a_flood_the_number_of_dropped_lines_is_sent(
    process: Process, client: Client
) -> None:
    listening = Listening(client)
    await listening.begin(level="DEBUG")
    sent = QUEUE_LINES + 500
    for number in range(sent):
        process.log(str(number), "debug")

    received: list[object] = []
    dropped = 0
    while len(received) + dropped < sent:
        message = await listening.next()
        assert len(message.lines) <= LINES_AT_ONCE
        received += texts(message)
        dropped += message.dropped

    assert (len(received), dropped) == (QUEUE_LINES, 500)


async def test_the_lines_from_before_are_divided_into_messages(
    process: Process, client: Client
) -> None:
    for number in range(40):
        process.log(str(number), text="x" * 10_000)
    listening = Listening(client)

    messages = [await listening.begin(last=1000)]
    while messages[-1].more:
        messages.append(await listening.next())

    assert len(messages) > 2
    assert [text for each in messages for text in texts(each)] == [str(n) for n in range(40)]


async def test_too_many_listeners_are_refused_with_a_reason(
    process: Process, client: Client
) -> None:
    for number in range(MOST_LISTENERS):
        await Listening(client, f"{INBOX}.{number}").begin()

    refused = await Listening(client, f"{INBOX}.more").begin()

    assert refused.refused == "TOO_MANY_LISTENERS"


@pytest.mark.parametrize(
    ("reply", "data"),
    [
        ("answers", b"{}"),
        ("", b"{}"),
        ("$JS.ACK.X.y.1.1.1.1.1", b'{"level":"DEBUG"}'),
        ("mailbox.ready.x", b"{}"),
        (f"{INBOX}.hostile", b"\xff\xfe"),
        (f"{INBOX}.hostile", b"[1]"),
        (f"{INBOX}.hostile", b'{"level":"TRACE"}'),
        (f"{INBOX}.hostile", b'{"last":-1}'),
        (f"{INBOX}.hostile", json.dumps({"function": "x" * 300}).encode()),
        (f"{INBOX}.hostile", b'{"level":"DEBUG"' + b" " * 5000 + b"}"),
    ],
)
async def test_what_is_no_listeners_request_is_not_answered(
    process: Process, client: Client, reply: str, data: bytes
) -> None:
    everything = await client.subscribe(">")
    await client.publish(LOG_REQUESTS, data, reply)
    await Listening(client, f"{INBOX}.good").begin()

    heard = [await everything.next_msg(DEADLINE_S) for _ in range(everything.pending_msgs)]

    assert process.feed.least == logging.INFO
    assert not [message for message in heard if message.subject == reply]


async def test_lines_that_wait_at_the_end_are_sent(broker: Broker, client: Client) -> None:
    process = Process(broker)
    await process.publisher.start()
    await broker.flush()
    listening = Listening(client)
    await listening.begin()
    process.log("the last words")
    await process.publisher.stop()

    assert texts(await listening.next()) == ["the last words"]
    assert process.feed.least == logging.INFO


async def test_processes_that_are_asked_at_once_all_answer(
    process: Process, nats_server: NatsServer, client: Client
) -> None:
    other_broker = await Broker.connect(nats_server.url, name="other")
    other = Process(other_broker)
    await other.publisher.start()
    await other_broker.flush()
    listening = Listening(client)

    first, second = await asyncio.wait_for(listening.begin(), DEADLINE_S), await listening.next()

    assert {first.feed, second.feed} == {process.feed.id, other.feed.id}
    await other.publisher.stop()
    await other_broker.close()
