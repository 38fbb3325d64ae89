"""A tenant that floods telemetry: another tenant's readings wait for what came before, no longer.

Ingest takes the stream's order: it writes a message as fast as the host could move it out of the
way (decision 25). So what the others wait is what lies before their message, at ingest's speed.
"""

import secrets
import sys
import time

import orjson
import pytest

from runtime import manifest
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.host import Addresses, Host, HostOptions
from runtime.loader import load_all
from runtime.observe.metrics import Metrics
from runtime.resource.postgres import open_pool
from tests.support.documentation import ROOT
from tests.support.host import eventually
from tests.support.ingest import GOOD, register
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(300)

BEFORE, AFTER = 100_000, 30_000
BEHIND = 15_000
"""What may be worked on beside a message: four batches of a thousand, and what is fetched ahead."""
CHUNK = 500
UNLIMITED = {"DEVICE_RATE": "100000", "DEVICE_BURST": "1000000"}


@pytest.mark.parametrize("limits", [UNLIMITED, {}], ids=["accepted", "refused"])
async def test_a_reading_waits_for_those_before_it_and_not_for_a_flood_that_goes_on(
    nats_server: NatsServer,
    broker: Broker,
    postgres_dsn: str,
    limits: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    declared = manifest.read([ROOT / "manifests" / "telemetry.yaml"], limits)
    addresses = Addresses(nats_server.url, postgres_dsn)
    loaded, mark, body = load_all(declared), secrets.token_hex(4), orjson.dumps(GOOD)

    def host() -> Host:
        return Host(declared, loaded, addresses, Metrics("0.0.0"), HostOptions())

    async def send(tenant: str, numbers: range) -> None:
        for first in range(numbers.start, numbers.stop, CHUNK):
            await broker.publish_many(
                [
                    Publication(f"telemetry.{tenant}.d", body, f"{mark}-{tenant}-{number}")
                    for number in range(first, min(first + CHUNK, numbers.stop))
                ]
            )

    preparing = host()
    await preparing.start()
    await preparing.drain(10.0)
    pool = await open_pool(postgres_dsn, max_size=2)
    try:
        for tenant in ("loud", "quiet"):
            await register(pool, tenant=tenant, device="d")
        await send("loud", range(BEFORE))
        await send("quiet", range(1))
        await send("loud", range(BEFORE, BEFORE + AFTER))
        working = host()
        await working.start()
        began_s = time.monotonic()

        async def seen() -> int | None:
            """How many messages of the flood are settled, once the other tenant's row is there."""
            found: int | None = await pool.fetchval(SETTLED)
            return found

        settled = await eventually(seen, "the quiet tenant's row", 200)
        took_s = time.monotonic() - began_s
        await working.drain(10.0)
    finally:
        await pool.close()
        await broker.api("STREAM.DELETE.TELEMETRY", {})
    with capsys.disabled():
        sys.stdout.write(f"\na reading behind {BEFORE:,} of another tenant: {took_s:.1f} s ")
    assert settled is not None
    assert BEFORE - BEHIND <= settled <= BEFORE + BEHIND


SETTLED = (
    "SELECT sum(received) FROM ("
    "    SELECT tenant_id, received FROM message_counts"
    "    UNION ALL SELECT tenant_id, received FROM message_count_changes) AS part"
    " WHERE tenant_id = 'loud' AND EXISTS (SELECT FROM telemetry WHERE tenant_id = 'quiet')"
)
