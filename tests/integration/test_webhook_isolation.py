"""Thousands of endpoints, a hundred of them dead: what the dead ones cost the others."""

import asyncio
import json
import ssl
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from functions.route_delivery.delivery import Destination
from functions.route_delivery.job import Job
from functions.route_delivery.webhook import Sender, WebhookSettings
from tests.support.hostile import HostileReceiver
from tests.support.receiver import Receiver

pytestmark = pytest.mark.timeout(120)

LIVE, DEAD, JOBS_OF_A_DEAD_ONE = 2000, 100, 20
AT_A_TIME = 16
NOISE_S = 0.02
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
JOB = Job(
    job_id="T-1-1-r",
    route_id="r",
    tenant_id="test",
    topic="tenant/test/device/dev1/telemetry",
    payload={},
    stored_at=datetime(2026, 8, 1, tzinfo=UTC),
)


def destination(url: str) -> Destination:
    return Destination("r", json.dumps({"url": url, "secret": SECRET}))


async def deliver_all(sender: Sender, urls: Sequence[str]) -> list[float]:
    """Seconds of each delivery, so many at a time."""
    left, took_s = iter(urls), []

    async def deliver_some() -> None:
        for url in left:
            began_s = time.perf_counter()
            receipt = await sender.send(JOB, destination(url))
            took_s.append(time.perf_counter() - began_s)
            assert receipt.outcome == "delivered", receipt

    await asyncio.gather(*(deliver_some() for _ in range(AT_A_TIME)))
    return took_s


async def test_a_hundred_endpoints_that_hang_do_not_slow_two_thousand_others() -> None:
    async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    settings = WebhookSettings(allowed_networks="127.0.0.0/8", timeout_s=3.0)
    sender = Sender(settings, ssl.create_default_context())
    async with Receiver() as live, HostileReceiver(hang) as dead:
        urls = [f"http://127.0.0.1:{live.port}/{number}" for number in range(LIVE)]
        alone_s = await deliver_all(sender, urls)
        jobs = [
            asyncio.create_task(sender.send(JOB, destination(f"{dead.url}/{number}")))
            for _ in range(JOBS_OF_A_DEAD_ONE)
            for number in range(DEAD)
        ]
        await asyncio.sleep(0)
        beside_s = await deliver_all(sender, urls)
        outcomes = {receipt.outcome for receipt in await asyncio.gather(*jobs)}
    await sender.aclose()
    assert outcomes == {"failed", "skipped"}
    p99_alone_s, p99_beside_s = (statistics.quantiles(s, n=100)[-1] for s in (alone_s, beside_s))
    assert p99_beside_s < 2 * p99_alone_s + NOISE_S
