"""examples/homelab on real servers: readings, log lines and events become rows, once each."""

import asyncio
import json
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from runtime.broker.connection import Broker
from tests.support.command import runtime
from tests.support.documentation import ROOT, read_commands, serving
from tests.support.host import eventually, letters_of, wait_until_settled
from tests.support.raw_client import RawClient
from tests.support.servers import NatsServer, PostgresServer, run_apart

FOLDER = ROOT / "examples" / "homelab"
CONSUMERS = {
    "store_readings_sensors": "iot-sensors",
    "store_readings_iot": "sensors",
    "store_logs": "app-logs",
    "store_events": "events",
}
TIME = "2025-07-15T10:30:00Z"
MOST_BYTES = 1_000_000


@pytest.fixture(scope="module")
def database(postgres_server: PostgresServer) -> Iterator[str]:
    run_apart(lambda: postgres_server.make_database("homelab"))
    yield postgres_server.dsn("homelab")
    run_apart(lambda: postgres_server.administer("DROP DATABASE homelab WITH (FORCE)"))


@pytest.fixture(scope="module")
def environment(nats_server: NatsServer, database: str) -> Iterator[dict[str, str]]:
    """The environment of a host of the example that runs meanwhile."""
    environment = {"NATS_URL": nats_server.url, "DATABASE_URL": database}
    with serving(FOLDER, ".", "--with", "homelab", environment=environment):
        yield environment


async def stored(broker: Broker) -> int:
    """The number of messages in the streams."""
    answers = [await broker.api(f"STREAM.INFO.{stream}") for stream in CONSUMERS.values()]
    return sum(answer["state"]["messages"] for answer in answers)


async def wait_until_stored(broker: Broker, messages: int) -> None:
    """Return when the streams have stored so many messages, and all of them are settled."""

    async def look() -> bool:
        return await stored(broker) == messages

    await eventually(look, f"{messages} messages in the streams")
    for function, stream in CONSUMERS.items():
        await wait_until_settled(broker, stream, function)


async def send(
    server: NatsServer, broker: Broker, messages: list[tuple[str | bytes, object]]
) -> None:
    """Publish as any client may; a payload that is not bytes is sent as JSON."""
    before = await stored(broker)
    async with RawClient(server) as client:
        for subject, payload in messages:
            name = subject if isinstance(subject, bytes) else subject.encode()
            data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            client.publish(name, data)
        await client.flush()
        await wait_until_stored(broker, before + len(messages))


async def rows(database: str, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(database)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def codes(broker: Broker, function: str) -> list[tuple[str, str]]:
    """The code of each dead letter, and the last part of its subject."""
    letters = await letters_of(broker, function)
    assert all(letter.reason for letter in letters)
    return sorted(
        (letter.code, letter.message.subject.rpartition(".")[2][:8]) for letter in letters
    )


async def test_readings_lines_and_events_become_rows_and_a_repeat_adds_none(
    nats_server: NatsServer, broker: Broker, database: str, environment: dict[str, str]
) -> None:
    iot = {"device_id": "device001", "sensor": "temperature", "value": 23.4, "unit": "celsius"}
    await send(
        nats_server,
        broker,
        [
            ("sensors.temperature.room1", {"value": 22.5, "unit": "C", "timestamp": TIME}),
            ("sensors.motion.door1", {"detected": True, "timestamp": TIME}),
            ("iot.sensors.temp.device001", {**iot, "location": "living_room"}),
            ("logs.web.error", "500 on /ü".encode()),
            ("events.door.opened", {"by": "key", "times": [1, 2.5]}),
        ],
    )

    measured = datetime(2025, 7, 15, 10, 30, tzinfo=UTC)
    found = await rows(
        database,
        "SELECT kind, place, value, detected, unit, device_id, location, measured_at"
        " FROM readings WHERE kind <> 'hostile' ORDER BY kind DESC, place DESC",
    )
    assert found == [
        ("temperature", "room1", 22.5, None, "C", None, None, measured),
        ("temp", "device001", 23.4, None, "celsius", "device001", "living_room", None),
        ("motion", "door1", None, True, None, None, None, measured),
    ]
    assert await rows(database, "SELECT line FROM log_lines WHERE source = 'web.error'") == [
        ("500 on /ü",)
    ]
    [(data,)] = await rows(database, "SELECT data FROM events WHERE name = 'door.opened'")
    assert json.loads(data) == {"by": "key", "times": [1, 2.5]}

    counted = "SELECT count(*) FROM readings UNION ALL SELECT count(*) FROM log_lines"
    before = await rows(database, counted)
    for function in ("store_readings_sensors", "store_logs"):
        again = ("replay", function, "--from", "1h", "--yes", "--manifest", ".")
        done = await runtime(
            environment["NATS_URL"], *again, "--with", "homelab", folder=FOLDER,
            DATABASE_URL=database,
        )  # fmt: skip
        assert done.code == 0, done.err + done.out
    assert await rows(database, counted) == before


async def test_what_does_not_fit_is_a_dead_letter_and_spoils_no_batch(
    nats_server: NatsServer, broker: Broker, database: str, environment: dict[str, str]
) -> None:
    del environment
    good = {"value": 1}
    hostile: list[tuple[str | bytes, object]] = [
        ("sensors.hostile", good),
        ("sensors.hostile.room\x01", good),
        (b"sensors.hostile.\xff\xfe", good),
        ("sensors.hostile." + "x" * 300, good),
        ("sensors.hostile.bad", b""),
        ("sensors.hostile.bad", b"\xff\xfe"),
        ("sensors.hostile.bad", b'{"value": NaN}'),
        ("sensors.hostile.bad", b'{"value": "22.5"}'),
        ("sensors.hostile.bad", b'{"value": 1, "unit": "\\u0000"}'),
        ("sensors.hostile.bad", b"[" * 100_000),
        ("sensors.hostile.bad", {**good, "unit": "x" * MOST_BYTES}),
        ("sensors.hostile.good", {**good, "more": "x" * MOST_BYTES}),
        ("logs.binary", b"\xff\xfe"),
        ("logs.nul", b"a\x00b"),
        ("logs.long", b"x" * 65_537),
        (b"logs.\xff", b"of a strange name"),
        ("logs.good", b"x" * 65_536),
        ("events.nul", b'{"a": ["\\u0000"]}'),
        ("events.huge", b'{"a": 1e999}'),
        ("events.list", b"[]"),
        ("events.large", {"a": "x" * 65_536}),
        (b"events.\xff", b"{}"),
        ("events.good", {}),
    ]
    await send(nats_server, broker, hostile)

    bad = [("PAYLOAD_INVALID", "bad")] * 7
    assert await codes(broker, "store_readings_sensors") == [
        *(("BAD_SUBJECT", name) for name in ("hostile", "room\x01", "x" * 8)),
        ("MESSAGE_UNREADABLE", "\udcff\udcfe"),
        *bad,
    ]
    assert await codes(broker, "store_logs") == [
        ("MESSAGE_UNREADABLE", "\udcff"),
        *(("NO_LINE", name) for name in ("binary", "long", "nul")),
    ]
    assert await codes(broker, "store_events") == [
        ("MESSAGE_UNREADABLE", "\udcff"),
        *(("PAYLOAD_INVALID", name) for name in ("huge", "list", "nul")),
        ("TOO_LARGE", "large"),
    ]
    kept = await rows(database, "SELECT place FROM readings WHERE kind = 'hostile'")
    assert kept == [("good",)]
    assert await rows(database, "SELECT source FROM log_lines WHERE source = 'good'")
    assert await rows(database, "SELECT name FROM events WHERE name = 'good'")


@pytest.mark.nats_cli
async def test_each_message_of_the_page_becomes_a_row(
    broker: Broker,
    database: str,
    environment: dict[str, str],
    nats_cli: Callable[..., str],
) -> None:
    commands = [line for line, _ in read_commands(FOLDER / "README.md")]
    counted = "SELECT (SELECT count(*) FROM readings) + (SELECT count(*) FROM log_lines)"
    counted += " + (SELECT count(*) FROM events)"
    [(before,)] = await rows(database, counted)

    published = [line for line in commands if line.startswith("nats pub ")]
    messages = await stored(broker)
    for line in published:
        await asyncio.to_thread(nats_cli, environment["NATS_URL"], *shlex.split(line)[1:])
    await wait_until_stored(broker, messages + len(published))

    assert len(published) == 5
    assert await rows(database, counted) == [(before + 5,)]
    [query] = [shlex.split(line)[-1] for line in commands if line.startswith("runtime psql")]
    assert ("temperature", "room1", 22.5, None) in await rows(database, query)
