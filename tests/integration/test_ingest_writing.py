"""Ingest on real servers: rows, refusals and redeliveries."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from functions.ingest.unmapped import quarantine_unmapped
from runtime import Batch, Event, Message
from runtime.broker.connection import Broker
from runtime.resource.outage import is_outage
from tests.support.ingest import GOOD, STORED_AT_NS, Ingest, raw, register, started


@pytest.fixture
async def function(postgres_dsn: str, broker: Broker) -> AsyncIterator[Ingest]:
    async with started(postgres_dsn, broker) as running:
        await register(running.pool)
        yield running


def again(message: Message) -> Message:
    return Message(
        message.subject,
        message.data,
        message.headers,
        stream=message.stream,
        sequence=message.sequence,
        attempt=message.attempt + 1,
        stored_at_ns=message.stored_at_ns,
    )


async def test_a_row_holds_the_streams_time_and_sequence(function: Ingest) -> None:
    await function.run(raw(1), raw(2, subject="telemetry.test.dev1.heartbeat"))
    first, second = await function.rows()
    assert first["seq"] == 1
    assert first["time"] == datetime.fromtimestamp(
        (STORED_AT_NS + 1_000_000_000) // 1000 / 1_000_000, UTC
    )
    assert (first["tenant_id"], first["device_id"], first["site_id"]) == ("test", "dev1", "s1")
    assert first["msg_type"] == "telemetry"
    assert json.loads(first["text"]) == {"temp": 22}
    assert second["msg_type"] == "heartbeat"


async def test_a_batch_delivered_again_writes_nothing_twice(function: Ingest) -> None:
    messages = [raw(n) if n % 3 else raw(n, b"no json") for n in range(1, 31)]
    await function.run(*messages)
    assert await function.counts() == (20, 10)
    await function.restart()
    await function.run(*map(again, messages))
    assert await function.counts() == (20, 10)


async def test_a_batch_of_old_and_new_messages_adds_the_new_ones(function: Ingest) -> None:
    await function.run(raw(1), raw(2))
    await function.restart()
    await function.run(again(raw(1)), raw(3), again(raw(2)), raw(4, b"?"))
    assert await function.counts() == (3, 1)


async def test_two_hosts_with_the_same_first_delivery_write_one_row(
    function: Ingest, postgres_dsn: str, broker: Broker
) -> None:
    """The hosts do not know of each other; the table's unique key decides."""
    messages = [raw(n) for n in range(1, 101)] + [raw(200, b"?")]
    async with started(postgres_dsn, broker) as other:
        await function.run(*messages)
        await other.run(*messages, raw(300))
        assert await function.counts() == (101, 1)
        both = [raw(n) for n in range(400, 500)]
        await asyncio.gather(function.run(*both), other.run(*both))
    assert await function.counts() == (201, 1)


async def test_a_verdict_stands_on_redelivery_whatever_the_registry_says_today(
    function: Ingest,
) -> None:
    await function.run(raw(1), raw(2, {**GOOD, "site_id": "s2"}))
    await function.pool.execute("UPDATE device_registry SET status = 'REVOKED', site_id = 's2'")
    await function.restart()
    await function.run(again(raw(1)), again(raw(2, {**GOOD, "site_id": "s2"})), raw(3))
    assert [row["seq"] for row in await function.rows()] == [1]
    assert {n: row["reason"] for n, row in (await function.quarantined()).items()} == {
        2: "SITE_MISMATCH_REGISTRY_VS_PAYLOAD",
        3: "DEVICE_REVOKED",
    }


async def test_a_flood_is_cut_at_the_burst_and_stays_cut_on_redelivery(function: Ingest) -> None:
    flood = [raw(n) for n in range(1, 31)]
    for message in flood:
        message.stored_at_ns = STORED_AT_NS + message.sequence
    await function.run(*flood)
    assert await function.counts() == (20, 10)
    await function.run(*map(again, flood))
    assert await function.counts() == (20, 10)
    assert {row["reason"] for row in (await function.quarantined()).values()} == {"RATE_LIMITED"}


async def test_messages_of_a_failed_batch_are_not_charged_again(function: Ingest) -> None:
    flood = [raw(n) for n in range(1, 21)]
    for message in flood:
        message.stored_at_ns = STORED_AT_NS + message.sequence
    await function.pool.execute("ALTER TABLE telemetry RENAME TO hidden")
    with pytest.raises(Exception, match="telemetry"):
        await function.run(*flood)
    await function.pool.execute("ALTER TABLE hidden RENAME TO telemetry")
    await function.run(*flood)
    assert await function.counts() == (20, 0)


async def test_a_verdict_stands_when_a_message_is_handed_over_as_its_first_attempt(
    function: Ingest,
) -> None:
    """After a drain, a redrive or a spill a message comes with attempt 1 again."""
    flood = [raw(n) for n in range(1, 31)]
    for message in flood:
        message.stored_at_ns = STORED_AT_NS + message.sequence
    await function.run(*flood)
    await function.pool.execute("UPDATE device_registry SET status = 'REVOKED'")
    await function.run(*[replace(message, called_before=True) for message in flood])
    assert await function.counts() == (20, 10)
    assert {row["reason"] for row in (await function.quarantined()).values()} == {"RATE_LIMITED"}


BAD: list[tuple[Any, str]] = [
    (b"not json", "INVALID_JSON"),
    (b"", "INVALID_JSON"),
    (b"\xff\xfe\x00", "INVALID_JSON"),
    (b'{"site_id":"s1","metrics":{"temp":NaN}}', "INVALID_JSON"),
    (b'{"site_id":"s1","metrics":{"temp":1e999}}', "INVALID_JSON"),
    (b'{"site_id":"s1","site_id":"s1"}', "INVALID_JSON"),
    (b'{"a":' * 40 + b"1" + b"}" * 40, "INVALID_JSON"),
    (b"[]", "INVALID_PAYLOAD"),
    ({**GOOD, "more": "x" * 1_000_000}, "PAYLOAD_TOO_LARGE"),
    ({**GOOD, "tenant_id": "other"}, "TENANT_MISMATCH_TOPIC_VS_PAYLOAD"),
    ({**GOOD, "site_id": None}, "MISSING_SITE_ID"),
    ({**GOOD, "site_id": "s\x00"}, "SITE_MISMATCH_REGISTRY_VS_PAYLOAD"),
    ({**GOOD, "provision_token": "wrong"}, "TOKEN_INVALID"),
    ({**GOOD, "provision_token": None}, "TOKEN_MISSING"),
    ({**GOOD, "metrics": {"temp": "\x00"}}, "METRIC_VALUE_INVALID"),
    ({**GOOD, "metrics": {"te\x00mp": 1}}, "METRIC_KEY_INVALID"),
    ({**GOOD, "metrics": {"temp": [1]}}, "METRIC_VALUE_INVALID"),
    ({**GOOD, "metrics": 5}, "METRICS_INVALID"),
    ({**GOOD, "metrics": {f"m{n}": n for n in range(51)}}, "TOO_MANY_METRICS"),
]


async def test_bad_messages_are_kept_to_the_byte_and_harm_no_neighbour(function: Ingest) -> None:
    bad = [raw(n, body) for n, (body, _) in enumerate(BAD, start=1)]
    unknown = raw(500, subject="telemetry.test.dev9")
    wild = raw(501, subject="telemetry.test.*")
    await function.run(raw(600), *bad, unknown, wild, raw(601))
    assert [row["seq"] for row in await function.rows()] == [600, 601]
    kept = await function.quarantined()
    reasons = [reason for _, reason in BAD]
    assert [kept[message.sequence]["reason"] for message in bad] == reasons
    assert kept[500]["reason"] == "UNREGISTERED_DEVICE"
    assert kept[501]["reason"] == "BAD_TOPIC_FORMAT"
    for message in (*bad, unknown, wild):
        row = kept[message.sequence]
        assert row["payload"] == message.data
        assert row["subject"] == message.subject
        assert row["stream"] == "TELEMETRY"
        assert json.loads(row["headers"]) == dict(message.headers)
        assert row["detail"]
    assert kept[500]["topic"] == "tenant/test/device/dev9/telemetry"
    assert (kept[500]["tenant_id"], kept[500]["device_id"]) == ("test", "dev9")


SUBJECTS = [
    "telemetry.test.dev1",
    "telemetry.test.dev1.event",
    "telemetry.test.dev1.commands",
    "telemetry.test.dev1.shadow/delta",
    "telemetry.test.dev1.a.b",
    "telemetry.test.dev9",
    "telemetry.other.dev1",
    "telemetry.>",
]
TOPICS: list[Any] = [
    "tenant/test/device/dev1/telemetry",
    "tenant/test/device/dev1/commands",
    "tenant/test/device/dev1/shadow/reported",
    "tenant/other/device/dev1/telemetry",
    "tenant/test/device/+/telemetry",
    None,
]


async def test_whatever_is_received_is_one_row_or_one_refusal_however_often_it_comes(
    function: Ingest,
) -> None:
    bodies = [GOOD, *(body for body, _ in BAD if len(str(body)) < 10_000)]
    sent = [(subject, body) for subject in SUBJECTS for body in bodies]
    sent += [
        ("telemetry.test", {"topic": topic, "payload": body})
        for topic in TOPICS
        for body in bodies
        if not isinstance(body, bytes)
    ]
    sent += [("telemetry.test", body) for body in bodies]
    received = [raw(n, body, subject) for n, (subject, body) in enumerate(sent, start=1)]
    repeated = [again(message) for message in received]
    for deliveries in (received, repeated[::-1], repeated):
        # Batches overlap, as after a host's death, when another host gets its messages.
        for begin in range(0, len(deliveries), 40):
            await function.run(*deliveries[begin : begin + 60])
    rows = [row["seq"] for row in await function.rows()]
    refused = await function.quarantined()
    assert len(rows) == len(set(rows)) == 3
    assert set(rows) | set(refused) == {message.sequence for message in received}
    assert not set(rows) & set(refused)


async def test_hostile_headers_and_topics_do_not_stop_the_quarantine(function: Ingest) -> None:
    message = raw(1, {"topic": "tenant/\x00/\ud800" + "x" * 5000}, subject="telemetry.test")
    message.headers = {"X": "a\x00b\ud800"}
    other = raw(2, {"topic": "a\x00b" + "x" * 100}, subject="telemetry.test")
    await function.run(message, other, raw(3))
    assert await function.counts() == (1, 2)
    assert (await function.quarantined())[1]["payload"] == message.data


async def test_a_row_that_the_database_alone_refuses_goes_to_quarantine(function: Ingest) -> None:
    await function.pool.execute("ALTER TABLE telemetry ADD CHECK (metrics ->> 'temp' <> '13')")
    await function.run(raw(1), raw(2, {**GOOD, "metrics": {"temp": 13}}), raw(3))
    assert [row["seq"] for row in await function.rows()] == [1, 3]
    assert (await function.quarantined())[2]["reason"] == "INGEST_EXCEPTION:CheckViolationError"


async def test_sensors_are_discovered_up_to_the_devices_limit(function: Ingest) -> None:
    await function.pool.execute("UPDATE device_registry SET sensor_limit = 3")
    await function.run(raw(1), raw(2, {**GOOD, "metrics": {"temp": 1, "hum": 2}}))
    await function.run(raw(3, {**GOOD, "metrics": {"a": 1, "b": 2, "c": 3}}))
    await function.run(raw(4, {**GOOD, "metrics": {"d": 1}}))
    sensors = await function.pool.fetch("SELECT sensor FROM device_sensors ORDER BY sensor")
    assert [row["sensor"] for row in sensors] == ["a", "hum", "temp"]
    assert await function.counts() == (4, 0)
    await function.restart()
    await function.run(raw(5, {**GOOD, "metrics": {"e": 1}}))
    assert await function.pool.fetchval("SELECT count(*) FROM device_sensors") == 3


async def test_an_outage_quarantines_nothing_and_loses_nothing(function: Ingest) -> None:
    async with function.pool.acquire() as other:
        await other.execute("BEGIN; LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE")
        running = asyncio.create_task(function.run(raw(1), raw(2, b"?")))
        pid = None
        while pid is None:
            pid = await other.fetchval(
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'telemetry'::regclass"
            )
        await other.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(Exception, match=r"terminat|clos") as failure:
            await running
        await other.execute("COMMIT")
    assert is_outage(failure.value)
    assert await function.counts() == (0, 0)
    await function.run(again(raw(1)), again(raw(2, b"?")))
    assert await function.counts() == (1, 1)


async def test_unmapped_topics_are_quarantined_and_the_platforms_downlinks_are_not(
    function: Ingest,
) -> None:
    messages = [
        raw(1, b"\x00\xff", subject="tenant.test.device.dev1.alarm"),
        raw(2, b"{}", subject="tenant.test.device.dev1.commands"),
        raw(3, b"{}", subject="tenant./.x"),
        raw(4, b"{}", subject="tenant.test.device.dev1.commands"),
    ]
    messages[3].headers = {"Nmqtt-Pub": "1"}  # as nats-server marks what an MQTT client published
    batch = Batch([Event(message, message.data) for message in messages])
    context = function.context
    for _ in range(2):
        await quarantine_unmapped(batch, context)
    kept = await function.quarantined()
    assert set(kept) == {1, 3, 4}
    assert kept[1]["payload"] == b"\x00\xff"
    assert kept[1]["topic"] == "tenant/test/device/dev1/alarm"
    assert kept[1]["reason"] == "INVALID_JSON"
    assert {kept[n]["reason"] for n in (3, 4)} == {"BAD_TOPIC_FORMAT"}


def flood_of(count: int) -> list[Message]:
    """More than a device's burst, stored in one moment."""
    flood = [raw(n) for n in range(1, count + 1)]
    for message in flood:
        message.stored_at_ns = STORED_AT_NS + message.sequence
    return flood


async def hold_up(host: Ingest, *messages: Message) -> tuple[list[Any], "asyncio.Task[None]"]:
    """Let a host judge the messages, and stop it before it writes: its connections are taken."""
    held: list[Any] = []
    make = host.state.job_maker.make

    async def take_all(candidates: Any) -> Any:
        made = await make(candidates)
        held.extend([await host.pool.acquire() for _ in range(host.pool.get_idle_size())])
        while host.pool.get_size() < host.pool.get_max_size():
            held.append(await host.pool.acquire())
        judged.set()
        return made

    judged = asyncio.Event()
    host.state.job_maker.make = take_all  # type: ignore[method-assign]
    running = asyncio.create_task(host.run(*messages))
    await judged.wait()
    host.state.job_maker.make = make  # type: ignore[method-assign]
    return held, running


@pytest.mark.parametrize("stored_s_ago", [3600, 15])
async def test_a_host_that_was_stopped_with_refused_messages_does_not_refuse_what_another_wrote(
    function: Ingest, postgres_dsn: str, broker: Broker, stored_s_ago: int
) -> None:
    flood = flood_of(30)
    for message in flood:
        message.stored_at_ns = time.time_ns() - stored_s_ago * 1_000_000_000 + message.sequence
    async with started(postgres_dsn, broker) as stopped:
        held, running = await hold_up(stopped, *flood)
        # No rate is charged to what may be repeated, so all of them are rows.
        await function.run(*map(again, flood))
        assert await function.counts() == (30, 0)
        for connection in held:
            await stopped.pool.release(connection)
        await running
    assert await function.counts() == (30, 0)


async def test_a_host_that_was_stopped_with_accepted_messages_does_not_write_what_another_refused(
    function: Ingest, postgres_dsn: str, broker: Broker
) -> None:
    async with started(postgres_dsn, broker) as stopped:
        held, running = await hold_up(stopped, raw(1), raw(2), raw(9_999))
        await function.pool.execute("UPDATE device_registry SET status = 'REVOKED'")
        await function.restart()
        await function.run(again(raw(2)))
        assert await function.counts() == (0, 1)
        for connection in held:
            await stopped.pool.release(connection)
        await running
    assert [row["seq"] for row in await function.rows()] == [1, 9_999]
    assert set(await function.quarantined()) == {2}
