"""A route with an order: two hosts, one is killed, and each key's jobs arrive in order."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from functions.domain.delivery_options import token_of
from runtime.broker.connection import Broker
from runtime.context import Publication
from tests.fault.endpoint import SECRET
from tests.fault.hosts import HostProcess, two_hosts
from tests.support.host import eventually, letters_of
from tests.support.receiver import Answer, Received, Receiver
from tests.support.servers import NatsServer

pytestmark = pytest.mark.timeout(300)

FUNCTION = "deliver_webhook_in_order"
KEYS = [f"d{number}" for number in range(20)]
EACH = 15
FIRST = 60


class InOrder(Receiver):
    """Records the jobs of each device that it accepts; refuses those of `dead` until it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: dict[str, list[int]] = defaultdict(list)
        self.attempts_at_dead = 0
        self.is_open = False
        self.goes_on = asyncio.Event()

    def answer_to(self, request: Received) -> Answer:
        data = json.loads(request.body)["data"]
        device, number = data["device_id"], data["payload"]["n"]
        if device == "dead" and not self.is_open:
            self.attempts_at_dead += 1
            return Answer(409)
        if number not in self.accepted[device]:
            self.accepted[device].append(number)
        held = self.goes_on if self.count > FIRST else None
        return Answer(204, body=b"", held=held)

    @property
    def count(self) -> int:
        return sum(map(len, self.accepted.values()))


@pytest.fixture
async def hosts(
    nats_server: NatsServer, postgres_dsn: str, tmp_path: Path
) -> AsyncIterator[list[HostProcess]]:
    # A leader that waited for no other is logged at DEBUG.
    async with two_hosts(
        nats_server.url,
        postgres_dsn,
        [Path("manifests/routes.yaml")],
        tmp_path,
        RUNTIME_LOG_LEVEL="DEBUG",
    ) as both:
        yield both


async def test_a_failing_head_holds_up_its_key_alone_though_the_leading_host_is_killed(
    hosts: list[HostProcess], broker: Broker, postgres_dsn: str
) -> None:
    async with InOrder() as receiver:
        route_id = await add_route(postgres_dsn, receiver.url)
        for host in hosts:
            await host.start()
        for host in hosts:
            await host.wait_until_ready()
        await publish(broker, route_id)

        await eventually(lambda: has(receiver, FIRST + 1), "jobs that wait for an answer", 60)
        leader = next(host for host in hosts if f'"function":"{FUNCTION}"' in leading(host))
        await leader.kill()
        receiver.goes_on.set()

        # Of the other keys every job arrives, the one behind a dead letter too.
        await eventually(lambda: has(receiver, len(KEYS) * EACH - 1), "all jobs but dead's", 90)
        assert receiver.attempts_at_dead >= 2
        assert receiver.accepted["dead"] == []
        receiver.is_open = True
        await eventually(lambda: has(receiver, (len(KEYS) + 1) * EACH - 1), "dead's jobs", 60)

    assert receiver.accepted.pop("dead") == list(range(EACH))
    # Its second job was refused for good: the key went on without it.
    assert receiver.accepted.pop("d0") == [0, *range(2, EACH)]
    assert all(numbers == list(range(EACH)) for numbers in receiver.accepted.values())
    [letter] = await letters_of(broker, FUNCTION)
    assert letter.code == "TRANSFORMATION_FAILED"


def leading(host: HostProcess) -> str:
    lines = [line for line in host.log.splitlines() if "Works on an ordered function" in line]
    return "\n".join(lines)


async def has(receiver: InOrder, count: int) -> bool:
    return receiver.count >= count


async def add_route(dsn: str, url: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("INSERT INTO tenants (tenant_id) VALUES ('test')")
        return str(
            await connection.fetchval(
                "INSERT INTO message_routes (tenant_id, name, topic_filter, destination_type,"
                " destination_config, order_by, delivery_options)"
                " VALUES ('test', 'in order', 'tenant/#', 'webhook', $1::text::jsonb, 'device_id',"
                " $2::text::jsonb) RETURNING id",
                json.dumps({"url": url, "secret": SECRET}),
                json.dumps(
                    {
                        "retry_delays_s": [1] * 20,
                        "transformation": {"fields": {"n": "payload.n + 0"}},
                    }
                ),
            )
        )
    finally:
        await connection.close()


async def publish(broker: Broker, route_id: str) -> None:
    jobs: list[Publication] = []
    for number in range(EACH):
        for device in ("dead", *KEYS):
            payload: dict[str, Any] = {"n": number}
            if (device, number) == ("d0", 1):
                payload = {"n": "one"}
            job_id = f"T-{device}-{number}-r"
            job = {
                "job_id": job_id,
                "route_id": route_id,
                "tenant_id": "test",
                "device_id": device,
                "topic": f"tenant/test/device/{device}/telemetry",
                "msg_type": "telemetry",
                "payload": payload,
                "stored_at": "2026-08-01T12:00:00Z",
            }
            subject = f"routes.test.webhook.{token_of(route_id, device)}"
            jobs.append(Publication(subject, json.dumps(job).encode(), job_id))
    await broker.publish_many(jobs)
