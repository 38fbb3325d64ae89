"""What is kept of refused messages, commands and answers: bounded by age, number and bytes."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from functions.commands.acks import MAX_ANSWERS, apply_ack
from functions.commands.creating import CommandSettings, create_command
from functions.commands.retention import CommandRetention, forget_commands
from functions.domain import refusal_log
from functions.domain.message_counts import (
    UNKNOWN,
    counts_of_all,
    counts_of_tenant,
    fold_counts,
)
from functions.ingest import retention
from functions.ingest.retention import RefusedSettings, forget_refused
from functions.management.message_books import get_message_books
from functions.management.quarantine import count_quarantine
from runtime.broker.connection import Broker
from tests.support.calls import Caller, stored
from tests.support.host import eventually
from tests.support.ingest import GOOD, Ingest, raw, register, started


@pytest.fixture
async def function(postgres_dsn: str, broker: Broker) -> AsyncIterator[Ingest]:
    async with started(postgres_dsn, broker, burst=1000) as running:
        await register(running.pool)
        yield running


async def keep(function: Ingest, **settings: Any) -> None:
    """Run the function that forgets refused messages with these settings."""
    caller = Caller(function.pool, settings=RefusedSettings(**settings))
    await forget_refused(caller.context())


async def books(function: Ingest, tenant_id: str = "test") -> dict[str, int]:
    counts = await counts_of_tenant(function.pool, tenant_id)
    return {name: count for name, count in asdict(counts).items() if count}


async def test_beyond_a_tenants_room_a_refused_message_is_counted_and_not_kept(
    function: Ingest,
) -> None:
    await register(function.pool, tenant="other")
    await keep(function, tenant_messages=3)
    await function.run(*(raw(n, b"?") for n in range(1, 3)))
    await function.run(*(raw(n, b"?") for n in range(3, 8)), raw(8))
    await function.run(raw(9, b"?", "telemetry.other.dev1"))
    # The oldest stay, and show how it began.
    assert set(await function.quarantined()) == {1, 2, 3, 9}
    assert await books(function) == {"received": 8, "written": 1, "quarantined": 3, "refused": 4}
    assert await books(function, "other") == {"received": 1, "quarantined": 1}
    minutes = (await Caller(function.pool).ask(count_quarantine, tenant_id="test")).items
    assert [(each.quarantined, each.refused) for each in minutes] == [(3, 4)]
    # Room that is made is room.
    await function.pool.execute("DELETE FROM quarantine_events WHERE sequence < 3")
    await fold_counts(function.pool)
    await function.run(*(raw(n, b"?") for n in range(20, 25)))
    assert set(await function.quarantined()) == {3, 9, 20, 21}
    await function.pool.execute("TRUNCATE quarantine_events")
    await function.run(*(raw(n, b"?") for n in range(30, 35)))
    assert set(await function.quarantined()) == {30, 31, 32}


@pytest.mark.parametrize("tenant_id", ["test", "nobody"])
async def test_of_a_message_that_is_not_kept_the_verdict_stands_and_counts_once(
    function: Ingest, tenant_id: str
) -> None:
    counted_for = "test" if tenant_id == "test" else UNKNOWN
    await keep(function, tenant_messages=1, unknown_messages=1)
    bad = {**GOOD, "site_id": "elsewhere"}
    batch = [raw(n, bad, f"telemetry.{tenant_id}.dev2") for n in (1, 2, 3, 5, 6, 9)]
    await function.run(*batch[:4])
    await function.run(*batch[4:])
    wanted = {"received": 6, "quarantined": 1, "refused": 5}
    assert await books(function, counted_for) == wanted
    # Its cause is mended, and another host gets what this one did not acknowledge.
    if tenant_id != "test":
        await register(function.pool, tenant=tenant_id)
    await register(function.pool, tenant=tenant_id, device="dev2")
    await function.pool.execute("UPDATE device_registry SET site_id = 'elsewhere'")
    await function.restart()
    await function.run(*(replace(message, called_before=True) for message in batch))
    await function.run(*(replace(message, attempt=2) for message in reversed(batch)))
    assert await function.counts() == (0, 1)
    total = await counts_of_all(function.pool)
    assert (total.received, total.duplicate, total.refused) == (18, 12, 5)
    # The next message between them is one of its own.
    await function.run(raw(4, bad, f"telemetry.{tenant_id}.dev2"))
    assert (await counts_of_all(function.pool)).written == 1


async def test_the_places_of_messages_that_are_not_kept_are_bounded(
    function: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def places() -> list[str]:
        rows = await function.pool.fetch("SELECT sequences::text AS run FROM quarantine_unkept")
        return [row["run"] for row in rows]

    await keep(function, tenant_messages=0)
    gaps = [raw(n, b"?") for n in range(100, 200, 2)]
    await function.run(*(raw(n, b"?") for n in range(1, 11)), *gaps)
    assert len(await places()) == 20
    assert "[1,11)" in await places()
    await function.pool.execute("UPDATE quarantine_unkept SET counted_at = now() - interval '2 h'")
    await function.run(raw(300, b"?"))
    monkeypatch.setattr(retention, "_MAX_UNKEPT", 20)
    await keep(function, tenant_messages=0)
    assert await places() == ["[300,301)"]
    await function.pool.execute("UPDATE quarantine_unkept SET counted_at = now() - interval '2 d'")
    await keep(function, tenant_messages=0)
    assert await places() == []


async def test_a_tenants_bytes_are_bounded_too(function: Ingest) -> None:
    await keep(function, tenant_bytes=2_000)
    await function.run(*(raw(n, b"x" * 900) for n in range(1, 5)), raw(9, b"?"))
    assert set(await function.quarantined()) == {1, 2}
    assert (await books(function))["refused"] == 3


async def test_of_tenants_that_do_not_exist_a_sample_is_kept_and_no_large_message(
    function: Ingest,
) -> None:
    await keep(function, unknown_messages=2)
    names = [f"telemetry.nobody{n}.dev1" for n in range(5)]
    await function.run(raw(1, b"x" * 900_000, names[0]))
    await function.run(*(raw(2 + n, b"?", name) for n, name in enumerate(names)), raw(9, b"?"))
    assert set(await function.quarantined()) == {2, 3, 9}
    assert await books(function, UNKNOWN) == {"received": 6, "quarantined": 2, "refused": 4}
    found = await Caller(function.pool).ask(get_message_books)
    assert (found.unknown.kept, found.kept, found.is_balanced) == (2, 3, True)
    # Nothing else grows with the names that a sender thinks of.
    await fold_counts(function.pool)
    for table in ("message_counts", "quarantine_usage", "quarantine_minutes"):
        tenants = await function.pool.fetch(f"SELECT DISTINCT tenant_id FROM {table}")  # noqa: S608
        assert {row["tenant_id"] for row in tenants} == {"", "test"}


async def test_a_full_quarantine_is_told_once_a_minute_for_each_tenant(
    postgres_dsn: str, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_log, "WINDOW_S", 2.0)
    monkeypatch.setattr(refusal_log, "_windows", {})

    def told() -> list[Any]:
        wanted = [line for line in lines if "not kept" in line["event"]]
        return [(line["tenant_id"], line["messages"]) for line in wanted]

    async def is_summed_up() -> bool:
        found: int = sum(messages for _, messages in told())
        return found == 7

    with capture_logs() as lines:
        async with started(postgres_dsn, broker) as function:
            await register(function.pool)
            await keep(function, tenant_messages=1, unknown_messages=0)
            for n in range(1, 5):
                await function.run(raw(n, b"?"), raw(10 + n, b"?", f"telemetry.no{n}.d"))
            await eventually(is_summed_up, "the number of the others")
    assert sorted(told()) == [("", 1), ("", 3), ("test", 1), ("test", 2)]


async def test_old_refused_messages_and_counters_are_removed_by_several_hosts(
    function: Ingest,
) -> None:
    await function.run(*(raw(n, b"?") for n in range(1, 8)), raw(9, b"?", "telemetry.no.dev1"))
    async with function.pool.acquire() as connection:
        await connection.execute(
            "UPDATE quarantine_events SET event_ts = now() - interval '2 days'"
            " WHERE sequence IN (1, 2, 3, 9)"
        )
        # A copy of this one may be on its way.
        await connection.execute(
            "UPDATE quarantine_events SET replayed_at = now() WHERE sequence = 2"
        )
        await connection.execute("UPDATE quarantine_minutes SET minute = now() - interval '9 d'")
    await asyncio.gather(*(keep(function) for _ in range(3)))
    assert set(await function.quarantined()) == set(range(1, 8))
    await asyncio.gather(*(keep(function, keep_days=1) for _ in range(3)))
    assert set(await function.quarantined()) == {2, *range(4, 8)}
    assert await function.pool.fetchval("SELECT count(*) FROM quarantine_minutes") == 0
    # What was removed still counts.
    assert await books(function) == {"received": 7, "quarantined": 7}


async def test_a_message_that_somebody_holds_is_left_to_the_next_run(function: Ingest) -> None:
    await function.run(raw(1, b"?"), raw(2, b"?"))
    await function.pool.execute("UPDATE quarantine_events SET event_ts = now() - interval '2 days'")
    async with function.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM quarantine_events WHERE sequence = 1 FOR UPDATE")
        await keep(function, keep_days=1)
        assert set(await function.quarantined()) == {1}
    await keep(function, keep_days=1)
    assert await function.quarantined() == {}


async def add_commands(pool: "asyncpg.Pool[asyncpg.Record]", *ages: int | None) -> None:
    """Commands 0, 1, …; each ended so many days ago, or is under way."""
    for number, age in enumerate(ages):
        await pool.execute(
            "INSERT INTO device_commands (command_id, tenant_id, device_id, name, expires_at,"
            " timeout_s, created_at, finished_at, status) VALUES ($1, 'test', 'dev1', 'reboot',"
            " now(), 60, now() - $2 * interval '1 day' - interval '1 minute',"
            " now() - $3::int * interval '1 day',"
            " CASE WHEN $3::int IS NULL THEN 'queued' ELSE 'expired' END)",
            *(str(number), age or 0, age),
        )
        await pool.execute(
            "INSERT INTO device_command_acks (tenant_id, device_id, command_id, stored_at_ns,"
            " sequence, status, late_ack, received_at)"
            " VALUES ('test', 'dev1', $1, 1, $2, 'acked', true, now())",
            *(str(number), number),
        )


async def kept_commands(pool: "asyncpg.Pool[asyncpg.Record]") -> set[int]:
    rows = await pool.fetch("SELECT command_id FROM device_commands")
    answers = await pool.fetch("SELECT command_id FROM device_command_acks")
    assert {row["command_id"] for row in rows} == {row["command_id"] for row in answers}
    return {int(row["command_id"]) for row in rows}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {0, 1, 2, 3}),
        ({"keep_days": 3}, {0, 2, 3}),
        ({"tenant_commands": 2}, {0, 3}),
        ({"tenant_commands": 0}, {0}),
        ({"tenant_bytes": 0}, {0}),
    ],
)
async def test_ended_commands_are_removed_by_age_and_beyond_their_tenants_room(
    function: Ingest, settings: dict[str, int], kept: set[int]
) -> None:
    await add_commands(function.pool, None, 5, 2, 1)
    caller = Caller(function.pool, settings=CommandRetention(**settings))
    await asyncio.gather(*(forget_commands(caller.context()) for _ in range(2)))
    assert await kept_commands(function.pool) == kept


async def test_the_commands_of_a_tenant_that_are_under_way_are_bounded(function: Ingest) -> None:
    api = Caller(function.pool, settings=CommandSettings(max_open=2))
    command = {"tenant_id": "test", "device_id": "dev1", "name": "reboot"}
    for name in ("a", "b"):
        await api.ask(create_command, **command, command_id=name)
    assert await api.refuse(create_command, **command) == ("TOO_MANY_COMMANDS", 429)
    # A repeated request is no other command.
    assert (await api.ask(create_command, **command, command_id="a")).command_id == "a"
    await function.pool.execute("UPDATE device_commands SET finished_at = now()")
    await api.ask(create_command, **command)


async def test_late_answers_to_one_command_are_bounded_and_one_that_counts_is_not(
    function: Ingest,
) -> None:
    await add_commands(function.pool, None)
    await function.pool.execute(
        "INSERT INTO device_command_acks (tenant_id, device_id, command_id, stored_at_ns,"
        " sequence, status, late_ack, received_at)"
        " SELECT 'test', 'dev1', '0', 2, n, 'acked', true, now()"
        " FROM generate_series(2, $1) AS n",
        MAX_ANSWERS,
    )
    api = Caller(function.pool)
    body = {"command_id": "0", "status": "acked", "provision_token": GOOD["provision_token"]}

    async def answer(sequence: int, **fields: Any) -> None:
        data = json.dumps({**body, **fields}).encode()
        message = stored("commands.test.dev1.ack", data, sequence, stream="COMMANDS")
        for delivery in (message, replace(message, attempt=2)):
            await api.deliver(apply_ack, delivery)

    await answer(201)
    await answer(202)
    await answer(203, status="succeeded")
    rows = await function.pool.fetch("SELECT reason, sequence FROM quarantine_events")
    assert [tuple(row) for row in rows] == [("TOO_MANY_ANSWERS", 202)]
    assert await function.pool.fetchval("SELECT status FROM device_commands") == "succeeded"
    assert await function.pool.fetchval("SELECT count(*) FROM device_command_acks") == (
        MAX_ANSWERS + 2
    )
