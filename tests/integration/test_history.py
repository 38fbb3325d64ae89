"""Reading a part of a stream once more, by a consumer of its own."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runtime.broker import history
from runtime.broker.connection import Broker
from runtime.broker.history import History, Span
from runtime.broker.stored import fetch
from runtime.context import Publication
from runtime.errors import ConfigError
from tests.support.host import eventually, fresh
from tests.support.servers import NatsServer

PUBLISHED = 600
"""More than two pull requests."""


@pytest.fixture
async def stream(broker: Broker) -> AsyncIterator[str]:
    """A stream with messages on two subjects, in turn."""
    name = fresh("PAST")
    await _add_stream(broker, name)
    for start in range(0, PUBLISHED, 200):
        await broker.publish_many(
            [
                Publication(f"{name}.{'even' if n % 2 == 0 else 'odd'}", b"%d" % n, f"{name}-{n}")
                for n in range(start + 1, start + 201)
            ]
        )
    yield name
    await broker.api(f"STREAM.DELETE.{name}")


async def _add_stream(broker: Broker, name: str, **config: object) -> None:
    await broker.api(
        f"STREAM.CREATE.{name}",
        {"name": name, "subjects": [f"{name}.>"], "storage": "memory", **config},
    )


async def _read(broker: Broker, span: Span) -> list[int]:
    reader = History(broker)
    async with aclosing(reader.read(await reader.find(span))) as messages:
        return [message.sequence async for message in messages]


async def _consumers(broker: Broker, stream: str) -> list[str]:
    return (await broker.api(f"CONSUMER.NAMES.{stream}")).get("consumers") or []


async def test_every_message_comes_once_in_order_and_no_consumer_stays(
    broker: Broker, stream: str
) -> None:
    found = await History(broker).find(Span(stream, (), 1))

    assert (found.count, found.last, found.oldest) == (PUBLISHED, PUBLISHED, 1)
    assert await _read(broker, Span(stream, (), 1)) == list(range(1, PUBLISHED + 1))
    assert await _consumers(broker, stream) == []


async def test_a_part_begins_and_ends_at_the_sequences_that_are_named(
    broker: Broker, stream: str
) -> None:
    even = Span(stream, (f"{stream}.even",), 11, 20)
    both = Span(stream, (f"{stream}.even", f"{stream}.odd"), 599)

    assert (await History(broker).find(even)).count == 5
    assert await _read(broker, even) == [12, 14, 16, 18, 20]
    assert await _read(broker, both) == [599, 600]


async def test_a_part_begins_at_one_time_and_ends_before_another(
    broker: Broker, stream: str
) -> None:
    first, last = await fetch(broker, stream, 201), await fetch(broker, stream, 401)
    assert first is not None
    assert last is not None
    # Times of the server have nanoseconds, those of Python microseconds.
    begin, end = (
        datetime.fromtimestamp(each.stored_at_ns // 1000 / 1e6, tz=UTC) for each in (first, last)
    )
    span = Span(stream, (), begin, end)

    found = await History(broker).find(span)
    read = await _read(broker, span)

    assert read == list(range(read[0], read[-1] + 1))
    assert abs(len(read) - 200) < 20  # Several messages have the same microsecond.
    assert abs(found.count - len(read)) < 20


async def test_messages_that_are_stored_meanwhile_do_not_count(broker: Broker, stream: str) -> None:
    reader = History(broker)
    found = await reader.find(Span(stream, (), PUBLISHED - 1))
    await broker.publish(f"{stream}.odd", b"new", msg_id=None)

    async with aclosing(reader.read(found)) as messages:
        assert [message.sequence async for message in messages] == [PUBLISHED - 1, PUBLISHED]


async def test_messages_larger_than_a_pull_request_are_read_too(
    broker: Broker, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PULL_BYTES", 1000)
    for _ in range(2):
        await broker.publish(f"{stream}.odd", b"x" * 5000, msg_id=None)

    assert await _read(broker, Span(stream, (), PUBLISHED)) == [PUBLISHED, 601, 602]


async def test_a_consumer_that_is_deleted_meanwhile_costs_no_message(
    broker: Broker, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAUSE_S", 0.01)
    reader = History(broker)
    read = []

    async with aclosing(reader.read(await reader.find(Span(stream, (), 1)))) as messages:
        async for message in messages:
            read.append(message.sequence)
            if len(read) in (10, 300):
                [name] = await _consumers(broker, stream)
                await broker.api(f"CONSUMER.DELETE.{stream}.{name}")

    assert read == list(range(1, PUBLISHED + 1))


async def test_a_stream_that_is_deleted_meanwhile_ends_the_reading_with_a_sentence(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAUSE_S", 0.01)
    monkeypatch.setattr(history, "PULL_MESSAGES", 1)
    name = fresh("PAST")
    await _add_stream(broker, name)
    for _ in range(3):
        await broker.publish(f"{name}.a", b"", msg_id=None)
    reader = History(broker)
    found = await reader.find(Span(name, (), 1))

    async def read() -> None:
        async with aclosing(reader.read(found)) as messages:
            async for message in messages:
                if message.sequence == 1:
                    await broker.api(f"STREAM.DELETE.{name}")

    with pytest.raises(ConfigError, match=f"stream {name}: it does not exist on this server"):
        await read()


@pytest.mark.parametrize(
    ("first", "until", "complaint"),
    [
        (PUBLISHED + 1, None, "it ends at sequence 600; begin earlier"),
        (datetime.now(UTC) + timedelta(days=1), None, "is in the future; begin earlier"),
        (20, 10, "the end is before the beginning; exchange --from and --until"),
    ],
)
async def test_a_part_that_cannot_have_messages_is_refused_with_the_reason(
    broker: Broker, stream: str, first: int | datetime, until: int | None, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        await History(broker).find(Span(stream, (), first, until))


async def test_a_stream_without_a_message_has_no_past(broker: Broker) -> None:
    name = fresh("EMPTY")
    await _add_stream(broker, name)

    with pytest.raises(ConfigError, match="it has had no message yet; publish one first"):
        await History(broker).find(Span(name, (), 1))


async def test_a_work_queue_has_no_past(broker: Broker) -> None:
    name = fresh("WORK")
    await _add_stream(broker, name, retention="workqueue")

    with pytest.raises(ConfigError, match="it removes a message as soon as it is done"):
        await History(broker).find(Span(name, (), 1))


async def test_the_server_removes_the_consumer_of_a_reader_that_died(
    broker: Broker, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "INACTIVE_S", 1)
    reader = History(broker)
    name, _ = await reader._create(Span(stream, (), 1), 1)

    assert await _consumers(broker, stream) == [name]

    async def is_gone() -> bool:
        return not await _consumers(broker, stream)

    await eventually(is_gone, "the removal of the consumer")


async def test_a_server_that_is_killed_meanwhile_costs_no_message(
    server_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "PAUSE_S", 0.05)
    monkeypatch.setattr(history, "PULL_S", 0.5)
    server = NatsServer(server_directory)
    broker = await Broker.connect(server.url, name="test")
    try:
        await _add_stream(broker, "PAST", storage="file")
        await broker.publish_many([Publication("PAST.a", b"", str(n)) for n in range(PUBLISHED)])
        reader = History(broker)
        read = []
        async with aclosing(reader.read(await reader.find(Span("PAST", (), 1)))) as messages:
            async for message in messages:
                read.append(message.sequence)
                if len(read) in (100, 400):
                    server.kill()
                    server.start()
    finally:
        await broker.close()
        server.stop()

    assert read == list(range(1, PUBLISHED + 1))
