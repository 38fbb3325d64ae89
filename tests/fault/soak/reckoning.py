"""Settles a soak, and compares what its senders know with streams, rows, books and jobs."""

from collections.abc import Mapping

import asyncpg

from functions.domain.message_counts import MessageCounts, counts_of_all, counts_of_tenant
from functions.domain.topics import DOWNLINKS
from runtime.broker.connection import Broker
from tests.fault.books import read_books
from tests.fault.soak.attackers import EVIL
from tests.fault.soak.doors import TENANT
from tests.fault.soak.ledger import REPEATS, Ledger
from tests.support.host import eventually
from tests.support.receiver import Receiver
from tests.support.servers import NatsServer

STREAMS = ("TELEMETRY", "SHADOW", "COMMANDS", "UNMAPPED")
SETTLED_S = 120.0


async def settle(nats: NatsServer, dsn: str, ledger: Ledger) -> None:
    """Return when nothing waits, here or at Mosquitto, and every job is delivered or given up."""
    broker = await Broker.connect(nats.url, name="soak")
    left: list[str] = []

    async def is_settled() -> bool:
        left[:] = [
            *await _waiting_messages(broker),
            *([f"{jobs} jobs"] if (jobs := (await read_books(dsn)).waiting) else []),
            *_lost(ledger, await _rows(dsn)),
        ]
        return not left

    try:
        await eventually(is_settled, "the end of everything", SETTLED_S)
    except AssertionError:
        raise AssertionError(f"after {SETTLED_S:g} s there wait: {left[:10]}") from None
    finally:
        await broker.close()


async def _waiting_messages(broker: Broker) -> list[str]:
    found = []
    for stream in STREAMS:
        for one in (await broker.api(f"CONSUMER.LIST.{stream}"))["consumers"]:
            waiting = one["num_pending"] + one["num_ack_pending"]
            found += [f"{waiting} of {stream} for {one['name']}"] if waiting else []
    return found


async def summary(dsn: str, ledger: Ledger) -> str:
    """What was counted, and how long a reading took from its device to its row."""
    rows = await _fetch(
        dsn,
        "SELECT msg_type, count(*),"
        " percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY took_s), max(took_s)"
        " FROM (SELECT msg_type, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
        "  - (metrics->>'sent_s')::float8 AS took_s FROM telemetry WHERE tenant_id = $1) AS row"
        " GROUP BY ROLLUP (msg_type) ORDER BY 1",
        TENANT,
    )
    lines = [
        *(
            f"  {kind or 'all rows':12} {count:8,} rows; sent to committed: median"
            f" {median_s * 1000:.0f} ms, p99 {p99_s * 1000:.0f} ms, most {most_s:.1f} s"
            for kind, count, (median_s, p99_s), most_s in rows
        ),
        *(
            f"  by {door}, {kind}: {count:,} stored"
            for (door, kind), count in sorted(ledger.messages.items())
        ),
        f"  sent again, as the platform was away: {dict(ledger.again)}",
        f"  commands: {len(ledger.commands)} sent, {len(ledger.executed)} executed",
        f"  garbage: {dict(ledger.garbage)}",
        f"  attacks: {dict(ledger.attacks)}",
        "",
    ]
    return "\n".join(lines)


async def assert_balanced(nats: NatsServer, dsn: str, ledger: Ledger) -> None:
    """Each stored message is a row or in quarantine; each confirmed reading has its row."""
    stored = await _count_received(nats)
    database = await asyncpg.connect(dsn)
    try:
        books: MessageCounts = await counts_of_all(database)  # type: ignore[arg-type]
        ours = await counts_of_tenant(database, TENANT)  # type: ignore[arg-type]
        evil = await counts_of_tenant(database, EVIL)  # type: ignore[arg-type]
    finally:
        await database.close()
    for each in (books, ours, evil):
        ended = each.written + each.quarantined + each.refused
        assert each.received == ended + each.duplicate, each
    assert books.written + books.quarantined + books.refused == stored, (books, stored)
    rows = await _rows(dsn)
    assert not (lost := _lost(ledger, rows)), lost[:10]
    doubled = [
        key for key, count in rows.items() if count > 1 and ledger.doors[key[0]] not in REPEATS
    ]
    assert not doubled, doubled[:10]


async def assert_no_healthy_device_was_refused(dsn: str, ledger: Ledger) -> None:
    assert not ledger.refused, ledger.refused[:10]
    assert not ledger.breaches, ledger.breaches[:10]
    rows = await _fetch(
        dsn,
        "SELECT reason, count(*) FROM quarantine_events"
        " WHERE tenant_id = $1 AND device_id LIKE 'dev-%' GROUP BY 1",
        TENANT,
    )
    # These are the attackers', who use the devices' names.
    assert {reason for reason, _ in rows} <= {"TOKEN_INVALID"}, rows


async def assert_events_were_delivered(dsn: str, endpoint: Receiver) -> None:
    [(events,)] = await _fetch(
        dsn, "SELECT count(*) FROM telemetry WHERE tenant_id = $1 AND msg_type = 'event'", TENANT
    )
    jobs = {request.headers["webhook-id"] for request in endpoint.requests}
    assert len(jobs) == events


async def _rows(dsn: str) -> dict[tuple[str, int], int]:
    """By device and number of a reading, its rows."""
    rows = await _fetch(
        dsn,
        "SELECT device_id, (metrics->>'n')::int AS n, count(*) FROM telemetry"
        " WHERE tenant_id = $1 AND device_id LIKE 'dev-%' GROUP BY 1, 2",
        TENANT,
    )
    return {(device, number): count for device, number, count in rows}


def _lost(ledger: Ledger, rows: Mapping[tuple[str, int], int]) -> list[str]:
    """The confirmed readings without a row."""
    return [
        f"{number} of {device} ({ledger.doors[device]})"
        for device, numbers in ledger.stored.items()
        for number in numbers
        if (device, number) not in rows
    ]


async def _count_received(nats: NatsServer) -> int:
    """Messages in the streams of devices, without those that the platform sends to devices."""
    broker = await Broker.connect(nats.url, name="soak")
    try:
        found = [await broker.api(f"STREAM.INFO.{stream}") for stream in STREAMS]
        received: int = sum(info["state"]["messages"] for info in found)
        for kind in DOWNLINKS:
            subjects = f"tenant.*.device.*.{kind.replace('/', '.')}"
            info = await broker.api("STREAM.INFO.UNMAPPED", {"subjects_filter": subjects})
            received -= sum((info["state"].get("subjects") or {}).values())
    finally:
        await broker.close()
    return received


async def _fetch(dsn: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
    database = await asyncpg.connect(dsn)
    try:
        return await database.fetch(statement, *arguments)
    finally:
        await database.close()
