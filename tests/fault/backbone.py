"""The telemetry pipeline under fault: what goes in, and what must come out of it."""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.errors import PublishFailed, Unavailable
from tests.receiver import Receiver

DEVICES = 10_000
ROUTED_EVERY = 50
MANIFESTS = [Path("manifests/telemetry.yaml"), Path("manifests/routes.yaml")]
_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the specification's example
_PER_PUBLISH = 1000


async def register_devices(
    database: "asyncpg.Connection[asyncpg.Record]", receiver_url: str
) -> None:
    """A tenant with all devices and one webhook route for every fiftieth message."""
    await database.execute("INSERT INTO tenants (tenant_id) VALUES ('fault')")
    await database.execute(
        "INSERT INTO subscriptions (tenant_id, device_limit) VALUES ('fault', $1)", DEVICES
    )
    await database.execute(
        "INSERT INTO device_registry (tenant_id, device_id, site_id, provision_token_hash)"
        " SELECT 'fault', 'dev' || n, 's1', sha256('tok') FROM generate_series(0, $1 - 1) AS n",
        DEVICES,
    )
    await database.execute(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type,"
        " destination_config, payload_filter)"
        " VALUES ('fault', 'some', 'tenant/+/device/+/telemetry', 'webhook', $1::text::jsonb, $2)",
        json.dumps({"url": receiver_url, "secret": _SECRET}),
        f"int(payload.metrics.n) % {ROUTED_EVERY} == 0",
    )


@dataclass
class Telemetry:
    """Messages 0 to `count` - 1, published until each is confirmed as stored."""

    count: int
    confirmed: int = 0
    _refused: int = field(default=0, repr=False)

    async def publish(self, broker: Broker) -> None:
        """Publish all; what is not confirmed is published again under the same id."""
        for first in range(0, self.count, _PER_PUBLISH):
            numbers = range(first, min(self.count, first + _PER_PUBLISH))
            publications = [
                Publication("telemetry.fault", _envelope(n), f"fault-{n}") for n in numbers
            ]
            while True:
                try:
                    await broker.publish_many(publications)
                    break
                except (PublishFailed, Unavailable):
                    self._refused += 1
                    await asyncio.sleep(0.1)
            self.confirmed += len(publications)


def _envelope(n: int) -> bytes:
    device = f"dev{n % DEVICES}"
    payload = {"site_id": "s1", "provision_token": "tok", "metrics": {"n": n, "temp": 21.5}}
    return json.dumps(
        {
            "topic": f"tenant/fault/device/{device}/telemetry",
            "tenant_id": "fault",
            "device_id": device,
            "msg_type": "telemetry",
            "payload": payload,
        }
    ).encode()


async def count_rows(dsn: str) -> int:
    """Rows of telemetry; -1 while PostgreSQL is away."""
    try:
        database = await asyncpg.connect(dsn, timeout=5)
    except (OSError, asyncpg.PostgresError):
        return -1
    try:
        return int(await database.fetchval("SELECT count(*) FROM telemetry"))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return -1
    finally:
        database.terminate()


async def is_all_acknowledged(broker: Broker) -> bool:
    """Whether nothing of the stream is waiting for ingest, on any host."""
    try:
        found = await broker.api("CONSUMER.INFO.TELEMETRY.ingest-workers")
    except Unavailable:
        return False
    return bool(found["num_pending"] == 0 and found["num_ack_pending"] == 0)


async def messages_in(broker: Broker, stream: str) -> int:
    """How many a stream holds."""
    return int((await broker.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


async def stream_exists(broker: Broker, name: str) -> bool:
    """Whether a host has made it."""
    return name in ((await broker.api("STREAM.NAMES"))["streams"] or [])


def delivered_ids(receiver: Receiver) -> set[str]:
    """The jobs that arrived, by the id that stays the same on every attempt."""
    return {request.headers["webhook-id"] for request in receiver.requests}


def delivered_numbers(receiver: Receiver) -> set[int]:
    """The messages whose jobs arrived."""
    bodies = (json.loads(request.body) for request in receiver.requests)
    return {body["data"]["payload"]["metrics"]["n"] for body in bodies}


async def assert_nothing_lost_nothing_doubled(
    telemetry: Telemetry, receiver: Receiver, broker: Broker, dsn: str
) -> None:
    """One row for each message, one id for each job, nothing refused and nothing given up."""
    jobs = -(-telemetry.count // ROUTED_EVERY)
    database = await asyncpg.connect(dsn)
    row = await database.fetchrow(
        "SELECT count(*) AS rows, count(DISTINCT metrics->>'n') AS messages FROM telemetry"
    )
    quarantined = await database.fetchval("SELECT count(*) FROM quarantine_events")
    await database.close()
    assert row is not None
    assert (row["rows"], row["messages"]) == (telemetry.count, telemetry.count)
    assert quarantined == 0
    assert await messages_in(broker, "DEAD_LETTERS") == 0
    assert (len(delivered_ids(receiver)), len(delivered_numbers(receiver))) == (jobs, jobs)
