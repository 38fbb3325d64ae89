"""The books of messages: exact over redeliveries and rolled back batches, by tenant and reason."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest

from functions.commands.acks import apply_ack
from functions.domain.message_counts import (
    UNKNOWN,
    MessageCounts,
    counts_of_all,
    counts_of_tenant,
    fold_counts,
)
from functions.domain.quarantine import tenant_of_subject
from functions.ingest.counting import fold_message_counts
from functions.ingest.unmapped import quarantine_unmapped
from functions.management.message_books import get_message_books, get_tenant_message_books
from functions.management.quarantine import count_quarantine
from functions.shadow.device_requests import answer_device
from runtime import Batch, Context, Event, Message
from runtime.broker.connection import Broker
from tests.support.calls import Caller, stored
from tests.support.ingest import GOOD, Ingest, raw, register, started


@pytest.fixture
async def function(postgres_dsn: str, broker: Broker) -> AsyncIterator[Ingest]:
    async with started(postgres_dsn, broker, burst=1000) as running:
        await register(running.pool)
        yield running


async def books(function: Ingest, tenant_id: str = "test") -> dict[str, int]:
    """The counts of a tenant that are not 0; they are balanced."""
    counts = await counts_of_tenant(function.pool, tenant_id)
    assert is_balanced(counts)
    return {name: count for name, count in asdict(counts).items() if count}


def is_balanced(counts: MessageCounts) -> bool:
    ended = counts.written + counts.quarantined + counts.refused + counts.duplicate
    return counts.received == ended


def again(message: Message) -> Message:
    return replace(message, called_before=True)


async def test_every_message_counts_once_as_what_became_of_it(function: Ingest) -> None:
    good, bad = [raw(n) for n in range(1, 4)], [raw(n, b"?") for n in range(4, 6)]
    await function.run(*good, *bad)
    assert await books(function) == {"received": 5, "written": 3, "quarantined": 2}
    await function.run(*map(again, good + bad))
    assert await books(function) == {
        "received": 10,
        "written": 3,
        "quarantined": 2,
        "duplicate": 5,
    }
    # As two hosts that had the same messages at the same time.
    await function.run(*good, *bad)
    assert (await books(function))["duplicate"] == 10
    assert await function.counts() == (3, 2)


async def test_a_batch_that_is_rolled_back_counts_nothing(function: Ingest) -> None:
    await function.pool.execute("ALTER TABLE telemetry RENAME TO hidden")
    with pytest.raises(Exception, match="telemetry"):
        await function.run(raw(1), raw(2, b"?"))
    assert await books(function) == {}
    await function.pool.execute("ALTER TABLE hidden RENAME TO telemetry")
    await function.run(again(raw(1)), again(raw(2, b"?")))
    assert await books(function) == {"received": 2, "written": 1, "quarantined": 1}


async def test_a_row_that_the_database_refuses_counts_as_quarantined(function: Ingest) -> None:
    await function.pool.execute("ALTER TABLE telemetry ADD CHECK (seq <> 2)")
    await function.run(*(raw(n) for n in range(1, 4)))
    assert await books(function) == {"received": 3, "written": 2, "quarantined": 1}


async def test_the_books_agree_with_the_rows_whatever_comes_in_which_order(
    function: Ingest,
) -> None:
    chance = random.Random(7)  # noqa: S311 - not for secrets
    await register(function.pool, tenant="other")
    everything: list[Message] = []
    bodies: list[Any] = [GOOD, GOOD, {**GOOD, "site_id": "x"}, b"?"]
    for sequence in range(1, 121):
        tenant = chance.choice(["test", "other", "nobody"])
        everything.append(raw(sequence, chance.choice(bodies), f"telemetry.{tenant}.dev1"))
    delivered = 0
    while delivered < 400:
        batch = chance.sample(everything, chance.randrange(1, 20))
        await asyncio.gather(
            function.run(*(again(message) for message in batch)),
            *([fold_message_counts(Context(function.scope))] if chance.random() < 0.3 else []),
        )
        delivered += len(batch)
    total = await counts_of_all(function.pool)
    parts = [await counts_of_tenant(function.pool, each) for each in ("test", "other", UNKNOWN)]
    assert all(map(is_balanced, parts))
    assert total == MessageCounts(*(sum(each) for each in zip(*map(_numbers, parts), strict=True)))
    rows, quarantined = await function.counts()
    assert (total.received, total.written, total.quarantined) == (delivered, rows, quarantined)
    await fold_counts(function.pool)
    assert await counts_of_all(function.pool) == total
    assert await function.pool.fetchval("SELECT count(*) FROM message_count_changes") == 0


def _numbers(counts: MessageCounts) -> tuple[int, ...]:
    return tuple(asdict(counts).values())


async def test_reports_answers_and_unmapped_messages_have_their_places(function: Ingest) -> None:
    api = Caller(function.pool)
    report = {"reported": {"a": 1}, "provision_token": "tok"}
    shadow = replace(raw(1, report, "shadow.test.dev1.reported"), stream="SHADOW")
    for message in (shadow, shadow, again(shadow)):
        await api.deliver(answer_device, message)
    assert await books(function) == {"received": 3, "written": 1, "duplicate": 2}
    await api.pool.execute(
        "INSERT INTO device_commands"
        " (command_id, tenant_id, device_id, name, expires_at, timeout_s)"
        " VALUES ('c', 'test', 'dev1', 'reboot', now() + interval '1 day', 60)"
    )
    body = {"command_id": "c", "status": "acked", "provision_token": "tok"}
    answer = replace(raw(1, body, "commands.test.dev1.ack"), stream="COMMANDS")
    wrong = replace(answer, sequence=2, data=b"?")
    for message in (answer, answer, again(answer), wrong, again(wrong)):
        await api.deliver(apply_ack, message)
    assert await books(function) == {
        "received": 8,
        "written": 2,
        "quarantined": 1,
        "duplicate": 5,
    }
    unmapped = stored("tenant.test.device.dev1.x", b"", 1, stream="UNMAPPED")
    ours = stored("tenant.test.device.dev1.commands", b"", 2, stream="UNMAPPED")
    batch = Batch([Event(each, each.data) for each in (unmapped, ours)])
    await quarantine_unmapped(batch, Context(function.scope))
    assert (await books(function))["quarantined"] == 2
    assert (await books(function))["received"] == 9


@pytest.mark.parametrize(
    ("subject", "tenant_id"),
    [
        ("telemetry.t", "t"),
        ("telemetry.t.d.x", "t"),
        ("shadow.t.d.reported", "t"),
        ("tenant.t.device.d.x", "t"),
        ("tenant.unmapped", ""),
        ("telemetry", ""),
        ("telemetry.*", ""),
        ("telemetry." + "t" * 65, ""),
        ("tenant.\udcff.x", ""),
    ],
)
def test_a_message_counts_for_the_tenant_in_its_subject(subject: str, tenant_id: str) -> None:
    assert tenant_of_subject(subject) == tenant_id


async def test_a_message_never_counts_for_a_tenant_that_it_only_names(function: Ingest) -> None:
    await register(function.pool, tenant="victim")
    envelope = {"topic": "tenant/victim/device/dev1/telemetry", "payload": GOOD}
    await function.run(raw(1, envelope, "telemetry.test"), raw(2, envelope, "telemetry.nobody"))
    assert await books(function, "victim") == {}
    assert await books(function) == {"received": 1, "quarantined": 1}
    assert await books(function, UNKNOWN) == {"received": 1, "quarantined": 1}


async def test_the_endpoints_say_the_books_of_one_tenant_of_all_and_of_the_unknown(
    function: Ingest,
) -> None:
    await function.run(raw(1), raw(2, b"?"), raw(3, b"??", "telemetry.nobody.dev1"))
    api = Caller(function.pool)
    mine = await api.ask(get_tenant_message_books, tenant_id="test")
    assert mine.model_dump(exclude={"read_at"}) == {
        "received": 2,
        "written": 1,
        "quarantined": 1,
        "refused": 0,
        "duplicate": 0,
        "kept": 1,
        "kept_bytes": len(b"?") + len('{"Nats-Msg-Id": "id-2"}'),
        "is_balanced": True,
    }
    everything = await api.ask(get_message_books)
    assert (everything.received, everything.kept, everything.is_balanced) == (3, 2, True)
    assert (everything.unknown.received, everything.unknown.kept) == (1, 1)
    assert await api.refuse(get_tenant_message_books, tenant_id="nobody") == (
        "TENANT_NOT_FOUND",
        404,
    )


async def test_refusals_are_counted_by_minute_tenant_and_reason(function: Ingest) -> None:
    async def shown(**fields: Any) -> dict[tuple[str, str], int]:
        page = await api.ask(count_quarantine, **fields)
        return {(item.tenant_id, item.reason): item.quarantined for item in page.items}

    api = Caller(function.pool)
    versions: list[Mapping[str, Any]] = [
        {"topic": "tenant/test/device/dev1/x", "version": f"v{n}", "payload": {}} for n in range(3)
    ]
    await function.run(raw(1, b"?"), raw(2, b"?"), raw(3, b"?", "telemetry.nobody.dev1"))
    await function.run(*(raw(4 + n, body, "telemetry.test") for n, body in enumerate(versions)))
    await function.run(*(again(raw(n, b"?")) for n in (1, 2)))
    wanted = {
        ("", "INVALID_JSON"): 1,
        ("test", "INVALID_JSON"): 2,
        # whatever versions a sender thinks of
        ("test", "unsupported_envelope_version"): 3,
    }
    assert await shown() == wanted
    await function.pool.execute("UPDATE quarantine_minutes SET minute = minute - interval '9 min'")
    await function.run(raw(9, b"?"))
    await fold_counts(function.pool)
    [newest, *older] = (await api.ask(count_quarantine)).items
    assert (newest.tenant_id, newest.quarantined, newest.refused) == ("test", 1, 0)
    assert {(each.tenant_id, each.reason): each.quarantined for each in older} == wanted
    assert await shown(tenant_id="") == {("", "INVALID_JSON"): 1}
    assert await shown(reason="INVALID_JSON", until=newest.minute) == {
        ("", "INVALID_JSON"): 1,
        ("test", "INVALID_JSON"): 2,
    }
    assert await shown(since=newest.minute) == {("test", "INVALID_JSON"): 1}
    first = await api.ask(count_quarantine, limit=1)
    rest = await api.ask(count_quarantine, cursor=first.next_cursor)
    assert [*first.items, *rest.items] == [newest, *older]
