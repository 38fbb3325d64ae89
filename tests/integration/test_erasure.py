"""Tenants are erased from a real PostgreSQL and a real nats-server."""

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import pytest
import structlog

from functions.domain.outbox import NewMessage, add_messages
from functions.erasure.endpoints import Erasure, ErasureQuery, erase_tenant, get_tenant_erasure
from functions.erasure.erasing import ErasingSettings, erase_tenants
from functions.erasure.tables import OTHER_COLUMNS
from functions.management import devices, tenants
from functions.management.claim_codes import create_claim_code
from functions.management.device_import import import_devices
from functions.management.device_tokens import DeviceSettings
from runtime import Context, Message, manifest
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.broker.mailbox import Mailbox
from runtime.broker.streams import ensure_runtime_streams
from runtime.context import Scope
from runtime.resource.postgres import open_pool
from tests.support.calls import Caller
from tests.support.documentation import ROOT
from tests.support.host import eventually
from tests.support.servers import PostgresServer
from tests.support.tenant_rows import count_mentions, fill_tables

GONE, KEPT = "tenant-to-erase-4711", "tenant-to-keep-4712"
SETTINGS = ErasingSettings(settle_s=0.2)
COLUMNS = {
    "tenant_id": "{}",
    # The database makes a column `tenant_id` of these.
    "queue": "{}/downlinks",
    "key": "device/{}/d",
    **{column: "{}" for _, column in OTHER_COLUMNS},
}


class Eraser:
    """Requests erasures and works on them, as management and the schedule do."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", broker: Broker) -> None:
        self.pool = pool
        self.api = Caller(pool, settings=DeviceSettings())
        self._broker = broker

    async def request(self, tenant: str = GONE) -> Erasure:
        return await self.api.ask(erase_tenant, tenant_id=tenant, confirm=tenant)

    async def run(self, settings: ErasingSettings = SETTINGS) -> None:
        """One tick of the schedule."""
        scope = Scope("e", settings, self._broker, {"postgres": self.pool}, structlog.get_logger())
        await erase_tenants(Context(scope))

    async def shown(self, tenant: str = GONE) -> Erasure:
        return await self.api.ask(get_tenant_erasure, tenant_id=tenant)

    async def finish(self, settings: ErasingSettings = SETTINGS, tenant: str = GONE) -> Erasure:
        """Tick until the erasure is done."""

        async def is_done() -> Erasure | None:
            await self.run(settings)
            erasure = await self.shown(tenant)
            return erasure if erasure.status == "done" else None

        return await eventually(is_done, "the end of the erasure")


@pytest.fixture
async def eraser(postgres_dsn: str, broker: Broker) -> AsyncIterator[Eraser]:
    pool = await open_pool(postgres_dsn, max_size=4)
    made = Eraser(pool, broker)
    for tenant in (GONE, KEPT):
        await made.api.ask(tenants.create_tenant, tenant_id=tenant)
    yield made
    await pool.close()


@pytest.fixture
async def streams(broker: Broker) -> AsyncIterator[list[str]]:
    """The shipped manifests' streams and the runtime's own, empty."""
    declared = manifest.read(sorted((ROOT / "manifests").glob("*.yaml")), {"ADMIN_KEY": "k" * 16})
    for name, spec in declared.streams.items():
        config = {"name": name, "subjects": list(spec.subjects), "storage": "memory"}
        await broker.api(f"STREAM.CREATE.{name}", config)
    await ensure_runtime_streams(broker)
    names: list[str] = (await broker.api("STREAM.NAMES", {}))["streams"]
    yield names
    for name in names:
        await broker.api(f"STREAM.DELETE.{name}")


async def read_all(broker: Broker, stream: str) -> list[bytes]:
    """Every byte of every message of a stream: subject, headers and payload."""
    found, sequence = [], 1
    last = (await broker.api(f"STREAM.INFO.{stream}"))["state"]["last_seq"]
    while sequence <= last:
        asked = {"seq": sequence, "next_by_subj": ">"}
        try:
            message = (await broker.api(f"STREAM.MSG.GET.{stream}", asked))["message"]
        except Exception:  # noqa: BLE001 - nothing follows
            break
        parts = (message["subject"].encode(), *map(message.get, ("hdrs", "data")))
        found.append(b"\n".join([parts[0], *(base64.b64decode(part or "") for part in parts[1:])]))
        sequence = message["seq"] + 1
    return found


async def count_in_streams(broker: Broker, names: list[str], text: str) -> dict[str, int]:
    counts = {
        name: sum(text.encode() in each for each in await read_all(broker, name)) for name in names
    }
    return {name: count for name, count in counts.items() if count}


async def test_what_waits_to_be_published_is_erased_whatever_it_is_for(eraser: Eraser) -> None:
    messages = [
        NewMessage(f"{tenant}{use}", f"downlinks.{tenant}.d.commands.c", "m", b"{}")
        for tenant in (GONE, KEPT, f"{GONE}-2")
        for use in ("", "/downlinks", "/events")
    ]
    async with eraser.pool.acquire() as connection, connection.transaction():
        await add_messages(connection, messages)
    await eraser.request()
    await eraser.finish()
    rows = await eraser.pool.fetch("SELECT tenant_id FROM delivery_outbox")
    assert Counter(row["tenant_id"] for row in rows) == {KEPT: 3, f"{GONE}-2": 3}


async def test_every_table_that_holds_tenants_is_emptied_of_one(
    postgres_server: PostgresServer, postgres_dsn: str, eraser: Eraser, broker: Broker
) -> None:
    """The tables come from the catalog, so this fails for a new one that the erasure misses."""
    name = await eraser.pool.fetchval("SELECT current_database()")
    declared = await eraser.pool.fetch(
        "SELECT table_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name LIKE '%tenant_id%'"
    )
    await eraser.pool.execute("DELETE FROM tenants")
    filled = await fill_tables(postgres_server.superuser_dsn, name, [GONE, KEPT], COLUMNS)
    partitions = {"telemetry_default"} | {
        row["table_name"] for row in declared if row["table_name"].startswith("telemetry_2")
    }
    missing = {row["table_name"] for row in declared} - filled - partitions - {"tenant_erasures"}
    assert not missing
    assert len(filled) > 30
    before = await count_mentions(eraser.pool, KEPT)
    assert set(before) == filled
    await eraser.request()

    erasure = await eraser.finish()

    assert await count_mentions(eraser.pool, GONE) == {"tenant_erasures": 1}
    assert await count_mentions(eraser.pool, KEPT) == before
    assert erasure.failure is None
    # Their rows went with the rows to which they belong, if not by themselves.
    uncounted = filled - set(erasure.deleted_rows) - {"tenants"}
    assert not uncounted


# Tables without a tenant: those of the installation, and of rows that go with one they refer to.
WITHOUT_TENANT = {
    *(
        "alembic_version_functions_domain_migrations",
        "presence_servers",
        "presence_watch",
        "rate_sharers",
    ),
    *("delivery_handovers", "destination_types", "quarantine_limits", "quarantine_unkept"),
    "poll_readers",
}


async def test_a_table_without_a_tenant_is_known_to_need_none(eraser: Eraser) -> None:
    """A new table has a column `tenant_id`, made of another one if need be, or stands above."""
    rows = await eraser.pool.fetch(
        "SELECT table_name FROM information_schema.tables AS each"
        " WHERE table_schema = 'public' AND NOT EXISTS ("
        "     SELECT FROM information_schema.columns AS of_table"
        "     WHERE of_table.table_schema = 'public' AND column_name = 'tenant_id'"
        "       AND of_table.table_name = each.table_name)"
    )
    assert {row["table_name"] for row in rows} == WITHOUT_TENANT


def publications(patterns: list[str], tenant: str) -> list[tuple[str, bytes]]:
    """A message for each form of a stream's subjects, of this tenant."""
    found = []
    for pattern in patterns:
        body = json.dumps({"tenant_id": tenant, "n": 1}).encode()
        family, _, rest = pattern.partition(".")
        if "*" not in pattern and ">" not in pattern:
            found.append((pattern, body))
        elif rest == ">":
            found += [(f"{family}.{tenant}", b"{}"), (f"{family}.{tenant}.d//1.a", b"\xff")]
        else:
            found.append((f"{family}.{tenant}.x", b"{}"))
    return found


# Streams of the documents that know no tenants.
UNRELATED = {"iot-sensors", "sensors", "app-logs", "events", "analytics"}


async def test_no_stream_holds_a_message_of_an_erased_tenant(
    eraser: Eraser, broker: Broker, streams: list[str]
) -> None:
    published = Counter[str]()
    for stream in sorted(set(streams) - UNRELATED):
        patterns = (await broker.api(f"STREAM.INFO.{stream}"))["config"]["subjects"]
        if stream in {"MAILBOX", "DEAD_LETTERS", "SCHEDULES", "ADVISORIES", "LEASES"}:
            continue
        for tenant in (GONE, KEPT):
            for subject, data in publications(patterns, tenant):
                ack = await broker.publish(subject, data, msg_id=None)
                assert ack.stream == stream
                published[stream] += tenant == GONE
    assert {"TELEMETRY", "SHADOW", "COMMANDS", "UNMAPPED", "ROUTES", "NOTICES"} <= set(published)
    assert {"POLLED", "REPUBLISHED", "SMS", "EMAIL", "WEBHOOKS"} <= set(published)
    mailbox, letters = Mailbox(broker), DeadLetters(broker)
    await mailbox.ensure()
    for number, tenant in enumerate((GONE, KEPT), 1):
        message = Message(
            f"routes.{tenant}.webhook", b"{}", stream="ROUTES", sequence=number, stored_at_ns=1
        )
        await mailbox.park(message, "deliver_webhook", 3600)
        await letters.store(DeadLetter("deliver_webhook", message, "CODE"))
        large = json.dumps({"tenant_id": tenant, "text": "x" * 1_000_000, "end": tenant}).encode()
        sms = Message("sms.send", large, stream="SMS", sequence=number, stored_at_ns=1)
        await letters.store(DeadLetter("send_sms", sms, "CODE"))
    before = await count_in_streams(broker, streams, KEPT)
    assert {"MAILBOX", "DEAD_LETTERS", *published} == set(before)
    await eraser.request()

    erasure = await eraser.finish()

    assert await count_in_streams(broker, streams, GONE) == {}
    assert await count_in_streams(broker, streams, KEPT) == before
    for stream, count in published.items():
        assert erasure.deleted_messages[stream] == count
    assert erasure.deleted_messages["DEAD_LETTERS"] == 2


async def test_what_only_claims_to_be_the_erased_tenants_stays(
    eraser: Eraser, broker: Broker, streams: list[str]
) -> None:
    """A device may write any tenant into its payload; its own tenant's letters must not go."""
    letters = DeadLetters(broker)
    claim = {"tenant_id": GONE}
    large = {"tenant_id": KEPT, "text": "x" * 1_000_000, "metadata": claim}
    bodies = [
        (f"telemetry.{KEPT}.d1", claim),
        (f"telemetry.{KEPT}.d1", {**claim, "text": "x" * 1_000_000, "more": claim}),
        ("sms.send", large),
        ("sms.send", {"metadata": claim, **large}),
    ]
    for number, (subject, body) in enumerate(bodies, 1):
        data = json.dumps(body).encode()
        message = Message(subject, data, stream="S", sequence=number, stored_at_ns=1)
        await letters.store(DeadLetter("f", message, "CODE"))
    await broker.publish(f"shadow.{KEPT}.d1.reported", json.dumps(claim).encode(), msg_id=None)
    before = {name: await read_all(broker, name) for name in streams}
    await eraser.request()

    erasure = await eraser.finish()

    assert erasure.deleted_messages == {}
    assert {name: await read_all(broker, name) for name in streams} == before


async def test_nothing_is_erased_without_a_confirmation(eraser: Eraser) -> None:
    for confirm in ({}, {"confirm": ""}, {"confirm": KEPT}, {"confirm": GONE.upper()}):
        refusal = await eraser.api.refuse(erase_tenant, tenant_id=GONE, **confirm)
        assert refusal == ("NOT_CONFIRMED", 422)
    await eraser.run()
    assert (await eraser.api.ask(tenants.get_tenant, tenant_id=GONE)).status == "ACTIVE"
    nobody = await eraser.api.refuse(erase_tenant, tenant_id="nobody", confirm="nobody")
    assert nobody == ("TENANT_NOT_FOUND", 404)
    missing = await eraser.api.refuse(get_tenant_erasure, tenant_id=GONE)
    assert missing == ("ERASURE_NOT_FOUND", 404)


async def test_a_tenant_that_is_being_erased_takes_nothing_and_does_not_come_back(
    eraser: Eraser,
) -> None:
    first = await eraser.request()
    assert await eraser.request() == first
    assert (await eraser.api.ask(tenants.get_tenant, tenant_id=GONE)).status == "ERASING"
    refusal = ("TENANT_BEING_ERASED", 409)
    one = {"tenant_id": GONE}
    file = {"format": "csv", "content": "device_id,site_id\na,s\n"}
    refuse = eraser.api.refuse
    assert await refuse(tenants.update_tenant, **one, status="ACTIVE") == refusal
    assert await refuse(tenants.create_tenant, **one) == refusal
    assert await refuse(devices.register_device, **one, device_id="d", site_id="s") == refusal
    assert await refuse(import_devices, **one, **file) == refusal
    assert await refuse(create_claim_code, **one, site_id="s") == refusal

    settling = ErasingSettings(settle_s=3600)
    await eraser.run(settling)
    await eraser.pool.execute("UPDATE tenant_erasures SET clean_since = now() - interval '2 hours'")
    await eraser.pool.execute("UPDATE tenant_erasures SET run_at = now()")
    await eraser.run(settling)
    # The tenant is gone, and the last look is still to come.
    assert (await eraser.shown()).tenant_deleted_at is not None
    assert await refuse(tenants.create_tenant, **one) == refusal
    assert (await eraser.request()).status == "running"
    await eraser.pool.execute(
        "UPDATE tenant_erasures SET tenant_deleted_at = now() - interval '2 hours', run_at = now()"
    )
    await eraser.run(settling)
    assert (await eraser.shown()).status == "done"
    assert await refuse(erase_tenant, **one, confirm=GONE) == ("TENANT_NOT_FOUND", 404)

    assert (await eraser.api.ask(tenants.create_tenant, **one)).status == "ACTIVE"
    again = await eraser.request()
    assert (again.status, again.deleted_rows, again.finished_at) == ("running", {}, None)
    await eraser.finish()


async def test_a_large_tenant_goes_in_small_steps_which_a_run_may_leave_off(
    eraser: Eraser,
) -> None:
    await eraser.pool.execute(
        "INSERT INTO telemetry SELECT now(), $1, 'd' || n % 100, 's', 't', n, '{}'"
        " FROM generate_series(1, 60000) AS n",
        GONE,
    )
    await eraser.request()
    looks = 0
    while (await eraser.shown()).deleted_rows.get("telemetry", 0) < 60_000:
        await eraser.run(ErasingSettings(settle_s=0.2, run_s=0.05))
        looks += 1
    assert looks > 1
    erasure = await eraser.finish()
    assert erasure.deleted_rows["telemetry"] == 60_000


async def test_a_step_that_fails_is_shown_and_made_again(eraser: Eraser) -> None:
    await eraser.pool.execute(
        "CREATE TABLE own_notes (tenant_id text NOT NULL, site_id text);"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'secret of %', OLD.site_id; END$$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON own_notes FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    await eraser.pool.execute("INSERT INTO own_notes VALUES ($1, 'roof')", GONE)
    await eraser.request()
    await eraser.run()
    shown = await eraser.shown()
    assert (shown.status, shown.failure) == ("running", "RaiseError at own_notes")
    await eraser.pool.execute("DROP TRIGGER refuse ON own_notes")
    await eraser.pool.execute("UPDATE tenant_erasures SET run_at = now()")
    erasure = await eraser.finish()
    assert erasure.failure is None
    assert erasure.deleted_rows["own_notes"] == 1


async def test_an_erasure_ends_although_refused_messages_still_come(
    eraser: Eraser, broker: Broker, streams: list[str]
) -> None:
    async def send() -> None:
        await broker.publish(f"telemetry.{GONE}", b"{}", msg_id=None)
        await eraser.pool.execute(
            "INSERT INTO message_count_changes SELECT $1, 1, 0, 1, 0, 0"
            " WHERE EXISTS (SELECT FROM tenants WHERE tenant_id = $1)",
            GONE,
        )

    await send()
    await eraser.request()

    async def is_done() -> bool:
        await send()
        await eraser.run()
        return (await eraser.shown()).status == "done"

    await eventually(is_done, "the end of the erasure")
    assert await count_mentions(eraser.pool, GONE) == {"tenant_erasures": 1}


def test_a_query_has_a_valid_tenant() -> None:
    with pytest.raises(ValueError, match="tenant_id"):
        ErasureQuery(tenant_id="a.>")
