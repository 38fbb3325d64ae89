"""Hosts are killed while a tenant is erased."""

import asyncio
import json

import pytest

from functions.erasure.endpoints import Erasure, erase_tenant, get_tenant_erasure
from functions.management.tenants import create_tenant
from runtime.broker.connection import Broker
from runtime.resource.postgres import open_pool
from tests.fault.hosts import two_hosts
from tests.fault.scene import Servers
from tests.support.calls import Caller
from tests.support.host import eventually
from tests.support.tenant_rows import count_mentions

pytestmark = pytest.mark.timeout(300)

TENANT = "tenant-to-erase-4711"
ROWS, MESSAGES = 200_000, 3_000
# 5,000 rows go at a time: at full speed all would be gone before the first kill.
SLOW = """
    CREATE TABLE own_notes (tenant_id text NOT NULL, n bigint NOT NULL);
    CREATE INDEX ON own_notes (tenant_id);
    CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END$$;
    CREATE TRIGGER take_time AFTER DELETE ON own_notes
        FOR EACH STATEMENT EXECUTE FUNCTION take_time();
"""
MANIFEST = """
streams:
  TELEMETRY: {subjects: ["telemetry.>"], storage: file}
  SMS: {subjects: [sms.send], storage: file}
functions:
  erase_tenants:
    handler: functions.erasure.erasing:erase_tenants
    schedule: {every: 1s}
    timeout: 2m
    uses: [postgres]
    settings: {run_s: 20, settle_s: 1}
"""


async def test_an_erasure_ends_and_counts_every_row_over_killed_hosts(servers: Servers) -> None:
    manifest = servers.directory / "erasure.yaml"
    manifest.write_text(MANIFEST, encoding="utf-8")
    broker = await Broker.connect(servers.nats_url, name="publisher")
    pool = await open_pool(servers.dsn, max_size=2)
    api = Caller(pool)

    async def shown() -> Erasure:
        return await api.ask(get_tenant_erasure, tenant_id=TENANT)

    async def reach(rows: int) -> None:
        async def is_there() -> bool:
            return (await shown()).deleted_rows.get("own_notes", 0) >= rows

        await eventually(is_there, f"{rows} deleted rows", 120)

    try:
        await api.ask(create_tenant, tenant_id=TENANT)
        await pool.execute(SLOW)
        await pool.execute(
            "INSERT INTO own_notes SELECT $1, n FROM generate_series(1, $2::integer) AS n",
            TENANT,
            ROWS,
        )
        async with two_hosts(servers.nats_url, servers.dsn, [manifest], servers.directory) as hosts:
            await asyncio.gather(*(host.start() for host in hosts))
            await asyncio.gather(*(host.wait_until_ready() for host in hosts))
            body = json.dumps({"tenant_id": TENANT}).encode()
            for number in range(MESSAGES):
                subject = f"telemetry.{TENANT}" if number % 2 else "sms.send"
                await broker.publish(subject, body, msg_id=None)
            await api.ask(erase_tenant, tenant_id=TENANT, confirm=TENANT)
            killed_within = 0
            for number, host in enumerate(hosts):
                await reach(ROWS * number // 4 + 1)
                was_running = (await shown()).deleted_rows.get("own_notes", 0) < ROWS
                await host.kill()
                killed_within += was_running
                await host.start()
                # As if the minute had passed after which an interrupted step is made again.
                await pool.execute("UPDATE tenant_erasures SET run_at = now()")

            async def is_done() -> bool:
                return (await shown()).status == "done"

            await eventually(is_done, "the end of the erasure", 120)
        erasure = await shown()
        assert killed_within == 2
        assert erasure.deleted_rows["own_notes"] == ROWS
        assert await count_mentions(pool, TENANT) == {"tenant_erasures": 1}
        for stream in ("TELEMETRY", "SMS"):
            info = await broker.api(f"STREAM.INFO.{stream}")
            assert info["state"]["messages"] == 0
    finally:
        await pool.close()
        await broker.close()
