"""Thousands of endpoints, a hundred of them dead: what the dead ones cost the others."""

import asyncio
import gc
import itertools
import json
import socket
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
import structlog
import uvloop
import yaml

from functions.domain.destination_secrets import Stored
from functions.domain.evaluation.evaluator import Evaluator
from functions.domain.secret_box import SecretBox
from functions.outbound.admission import Admission, Limits
from functions.outbound.endpoint import WebhookDestination
from functions.outbound.receipt import Receipt
from functions.outbound.transport.resolver import Resolver
from functions.outbound.webhook_sender import WebhookSender, WebhookSettings
from functions.route_delivery.delivery import Delivery
from functions.route_delivery.destinations import DestinationReader
from functions.route_delivery.job import Job
from functions.route_delivery.journal import FoundRoute
from functions.route_delivery.webhook import key_of, send
from runtime import Context
from runtime.context import Scope
from runtime.process import collector
from tests.support.hostile import HostileReceiver
from tests.support.name_server import NameServer
from tests.support.receiver import Receiver

pytestmark = pytest.mark.timeout(300)

MANIFEST = Path(__file__).parents[2] / "manifests" / "routes.yaml"
DEAD, LIVE_PER_S, DEAD_PER_S = 100, 300.0, 200.0
NOISE_S, LONG_NOISE_S = 0.02, 0.002
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
JOB = Job(
    job_id="T-1-1-r",
    route_id="0b0e0f5c-9f6e-4f0c-8a53-2f5c3f3a7d11",
    tenant_id="test",
    topic="tenant/test/device/dev1/telemetry",
    payload={},
    stored_at=datetime(2026, 8, 1, tzinfo=UTC),
)


@dataclass(slots=True)
class Comparison:
    """The 99th percentiles of each turn, and what the dead endpoints' attempts ended with."""

    alone_s: list[float] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


class Attempts:
    """Makes attempts at webhooks, as many at a time as the function, and logs none."""

    def __init__(self, sender: WebhookSender, settings: WebhookSettings) -> None:
        self._delivery = Delivery(
            "webhook",
            send,
            settings,
            None,
            DestinationReader(WebhookDestination, key_of, SecretBox([])),
            None,  # type: ignore[arg-type] # an attempt alone needs no database
            # All endpoints are on one port here: a stall of the machine must not fill its bound.
            Admission(Limits(of_origin=10_000)),
            Evaluator(structlog.get_logger()),
            sender,
            None,  # type: ignore[arg-type] # nor does it settle a job
        )
        self._context: Context = Context(
            Scope("deliver_webhook", settings, None, {}, structlog.get_logger())  # type: ignore[arg-type]
        )
        self._places = asyncio.Semaphore(places())

    def read(self, url: str) -> None:
        self._delivery.reader.read(stored(url), UUID(JOB.route_id))

    async def make(self, url: str) -> Receipt:
        route = FoundRoute("webhook", stored(url), True, False)
        async with self._places:
            receipt, _ = await self._delivery.attempt(JOB, route, self._context)
        return receipt


def places() -> int:
    """How many jobs the function delivers at a time."""
    functions = yaml.safe_load(MANIFEST.read_text())["functions"]
    return int(functions["deliver_webhook"]["concurrency"])


def stored(url: str) -> Stored:
    return Stored(json.dumps({"url": url, "secret": SECRET}), None)


@contextmanager
def collector_as_in_the_host() -> Iterator[None]:
    """Else it stops the loop for a quarter of a second to look at what pytest has imported."""
    usual = gc.get_threshold()
    collector.freeze()
    collector.collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


async def deliver_paced(attempts: Attempts, urls: Sequence[str]) -> float:
    """The 99th percentile of the seconds from when a delivery was due, at a fixed rate.

    Each task is made when it is due. To make thousands of them at the beginning takes half a
    second on a busy machine, which the first hundred would count as theirs.
    """
    took_s: list[float] = []

    async def deliver(due_s: float, url: str) -> None:
        receipt = await attempts.make(url)
        took_s.append(time.monotonic() - due_s)
        assert receipt.outcome == "delivered", receipt

    began_s = time.monotonic()  # Not the loop's clock: uvloop's counts whole milliseconds.
    async with asyncio.TaskGroup() as begun:
        for number, url in enumerate(urls):
            due_s = began_s + number / LIVE_PER_S
            if (early_s := due_s - time.monotonic()) > 0.0:
                await asyncio.sleep(early_s)
            begun.create_task(deliver(due_s, url))
    return statistics.quantiles(took_s, n=100)[-1]


async def deliver_to_the_dead(attempts: Attempts, urls: Sequence[str], seen: Counter[str]) -> None:
    """Attempts at dead endpoints without end, whose results nobody waits for."""
    async with asyncio.TaskGroup() as begun:
        for url in itertools.cycle(urls):
            begun.create_task(attempts.make(url)).add_done_callback(
                lambda task: None if task.cancelled() else seen.update([task.result().code])
            )
            await asyncio.sleep(1 / DEAD_PER_S)


async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def compare(live: int, turns: str, timeout_s: float) -> Comparison:
    """Measures deliveries without and beside a hundred dead endpoints, in turn.

    Args:
        live: number of healthy endpoints.
        turns: `a` for alone, `b` beside the dead ones.
        timeout_s: time limit of an attempt.
    """
    found = Comparison()
    async with (
        NameServer() as names,
        Receiver() as receiver,
        HostileReceiver(hang) as hanging,
        refusing_port() as refusing,
    ):
        settings = WebhookSettings(
            allowed_networks="127.0.0.0/8", timeout_s=timeout_s, nameservers=names.address
        )
        silent = [f"silent-{number}.example" for number in range(DEAD)]
        names.silent.update(silent)
        kinds = (
            lambda number: f"{hanging.url}/{number}",
            lambda number: f"http://127.0.0.1:{refusing}/{number}",
            lambda number: f"http://{silent[number]}/",
        )
        dead = [kinds[number % len(kinds)](number) for number in range(DEAD)]
        urls = [f"http://127.0.0.1:{receiver.port}/{number}" for number in range(live)]
        sender = WebhookSender(settings, ssl.create_default_context())
        attempts = Attempts(sender, settings)
        # The first turn shall find what the others find: all configurations read, connections open.
        for url in urls:
            attempts.read(url)
        await deliver_paced(attempts, urls[: live // 4])
        for turn in turns:
            if turn == "a":
                found.alone_s.append(await deliver_paced(attempts, urls))
                continue
            pestering = asyncio.create_task(deliver_to_the_dead(attempts, dead, found.seen))
            found.beside_s.append(await deliver_paced(attempts, urls))
            pestering.cancel()
            await asyncio.gather(pestering, return_exceptions=True)
        await sender.aclose()
    return found


@asynccontextmanager
async def refusing_port() -> AsyncIterator[int]:
    """A port on loopback where nothing listens, kept from other processes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_hundred_dead_endpoints_do_not_slow_the_others() -> None:
    with collector_as_in_the_host():
        found = uvloop.run(compare(live=600, turns="abbaab", timeout_s=1.5))
    assert found.seen.keys() >= {"TIMEOUT", "CONNECTION_FAILED", "CONNECT_TIMEOUT"}
    # The best turns: whatever else stalls this machine is not in all of them.
    assert min(found.beside_s) < 2 * min(found.alone_s) + NOISE_S


async def test_a_lookup_that_fails_when_nobody_waits_any_more_is_no_error_of_the_event_loop() -> (
    None
):
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: told.append(error["message"]))
    async with NameServer() as names:
        names.silent.add("late.example")
        resolver = Resolver([names.address])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await resolver.resolve("late.example")
        names.silent.clear()  # The next query learns that there is no such name.
        await asyncio.wait(list(resolver._lookups.values()))
        await resolver.close()
    gc.collect()
    assert told == []


@pytest.mark.long
def test_the_p99_of_ten_thousand_endpoints_is_the_same_beside_a_hundred_dead_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with collector_as_in_the_host():
        found = uvloop.run(compare(live=9900, turns="abbaab", timeout_s=10.0))
    with capsys.disabled():
        told = f"{milliseconds(found.alone_s)} alone, {milliseconds(found.beside_s)} beside"
        sys.stdout.write(f"\np99 of 9,900 endpoints in ms: {told} 100 dead ones, ")
        sys.stdout.write(f"which said {dict(found.seen)}\n")
    alone_s, beside_s = (statistics.median(turns) for turns in (found.alone_s, found.beside_s))
    assert beside_s < 1.1 * alone_s + LONG_NOISE_S


def milliseconds(turns_s: Sequence[float]) -> str:
    return ", ".join(f"{turn_s * 1000:.1f}" for turn_s in turns_s)
