"""Publishes messages of many devices, each until its storage is confirmed."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from runtime.broker.connection import Broker
from runtime.context import PubAck, Publication
from runtime.errors import PublishFailed, Unavailable

TENANT = "fault"
TOKEN, WRONG_TOKEN = "tok", "wrong"
DEVICES = 10_000
ROUTED_EVERY = 50
REFUSED_EVERY, STRAY_EVERY, REPEATED_EVERY = 20, 40, 25
_SPAN_S = 4.0
_CHUNKS = 50
_OFFER_AGAIN_S = 0.1


@dataclass
class Traffic:
    """Readings 0 to `count` - 1. Each shall become a row, and some shall become a webhook too.

    Attributes:
        count: number of readings.
        chunk: how many readings are published together.
        pause_s: pause between chunks, outside the burst.
        burst: the readings that are published without a pause.
        is_mixed: also send readings with a wrong token, jobs that cannot be parsed, and some
            readings twice.
        confirmed: readings whose storage was confirmed.
        duplicates: readings that the stream recognized as duplicates.
        refusals: the reason of each failed publish.
    """

    count: int
    chunk: int = 1000
    pause_s: float = 0.0
    burst: range = range(0)
    is_mixed: bool = False
    confirmed: int = 0
    duplicates: int = 0
    refusals: list[str] = field(default_factory=list)
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition, repr=False)

    @classmethod
    def mixed(cls, count: int) -> "Traffic":
        """Messages of all kinds, within a few seconds; the burst comes after the first fifth."""
        burst = range(count // 5, count * 2 // 5)
        return cls(count, max(1, count // _CHUNKS), _SPAN_S / _CHUNKS, burst, is_mixed=True)

    @property
    def routed(self) -> range:
        """The readings that the webhook receives."""
        return range(0, self.count, ROUTED_EVERY)

    @property
    def refused(self) -> range:
        """The numbers of readings with a wrong token."""
        return self._every(REFUSED_EVERY)

    @property
    def strays(self) -> range:
        """The numbers of jobs that cannot be parsed."""
        return self._every(STRAY_EVERY)

    @property
    def repeated(self) -> range:
        """The readings that are sent twice with one id."""
        return self._every(REPEATED_EVERY)

    @property
    def received(self) -> int:
        """How many messages are stored, once all are confirmed."""
        return self.count + len(self.refused) + len(self.strays) + len(self.repeated)

    def _every(self, step: int) -> range:
        return range(0, self.count if self.is_mixed else 0, step)

    async def publish(self, broker: Broker) -> None:
        """Publish all; an unconfirmed message is published again with the same id."""
        for first in range(0, self.count, self.chunk):
            numbers = range(first, min(self.count, first + self.chunk))
            readings = {n: _reading(f"fault-{n}", n, TOKEN) for n in numbers}
            await self._confirm(broker, [*readings.values(), *self._besides(numbers)])
            again = await self._confirm(
                broker, [readings[n] for n in numbers if n in self.repeated]
            )
            self.duplicates += sum(ack.duplicate for ack in again)
            async with self._moved:
                self.confirmed += len(numbers)
                self._moved.notify_all()
            if first not in self.burst:
                # The pace of the devices; there is no event to wait for.
                await asyncio.sleep(self.pause_s)

    async def reach(self, count: int) -> None:
        """Return when that many readings are confirmed."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.confirmed >= count)

    def _besides(self, numbers: range) -> list[Publication]:
        refused = [_reading(f"refused-{n}", n, WRONG_TOKEN) for n in numbers if n in self.refused]
        strays = [
            Publication("routes.fault.webhook", b"%d is no job" % n, f"stray-{n}")
            for n in numbers
            if n in self.strays
        ]
        return refused + strays

    async def _confirm(self, broker: Broker, publications: Sequence[Publication]) -> list[PubAck]:
        while True:
            try:
                return await broker.publish_many(publications)
            except (PublishFailed, Unavailable) as failure:
                self.refusals.append(failure.reason)
                await asyncio.sleep(_OFFER_AGAIN_S)


def _reading(msg_id: str, n: int, token: str) -> Publication:
    device = f"dev{n % DEVICES}"
    payload = {"site_id": "s1", "provision_token": token, "metrics": {"n": n, "temp": 21.5}}
    envelope = {
        "topic": f"tenant/fault/device/{device}/telemetry",
        "tenant_id": "fault",
        "device_id": device,
        "msg_type": "telemetry",
        "payload": payload,
    }
    return Publication("telemetry.fault", json.dumps(envelope).encode(), msg_id)


async def register_devices(dsn: str, webhook_url: str, secret: str) -> None:
    """Register a tenant with all devices, and a webhook route for every fiftieth reading."""
    database = await asyncpg.connect(dsn)
    await database.execute("INSERT INTO tenants (tenant_id) VALUES ('fault')")
    await database.execute(
        "INSERT INTO subscriptions (tenant_id, device_limit) VALUES ('fault', $1)", DEVICES
    )
    await database.execute(
        "INSERT INTO device_registry (tenant_id, device_id, site_id, provision_token_hash)"
        " SELECT 'fault', 'dev' || n, 's1', sha256(convert_to($2::text, 'UTF8'))"
        " FROM generate_series(0, $1 - 1) AS n",
        DEVICES,
        TOKEN,
    )
    await database.execute(
        "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type,"
        " destination_config, payload_filter)"
        " VALUES ('fault', 'some', 'tenant/+/device/+/telemetry', 'webhook', $1::text::jsonb, $2)",
        json.dumps({"url": webhook_url, "secret": secret}),
        f"int(payload.metrics.n) % {ROUTED_EVERY} == 0",
    )
    await database.close()
