"""deliver_queued_webhook: signatures, failures, endpoints, and webhooks.retry."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from standardwebhooks import Webhook

from functions.domain.secret_box import SecretBox
from functions.messages import deliver_queued_webhook as queued
from runtime import Reject, Retry
from runtime.broker.connection import Broker
from tests.support.queue_worker import QueueWorker, running_queue
from tests.support.receiver import Answer, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = "k" * 32


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as running:
        yield running


@pytest.fixture
async def worker(broker: Broker, postgres_dsn: str) -> AsyncIterator[QueueWorker]:
    async with running_queue(
        broker,
        postgres_dsn,
        "webhook",
        queued,
        "deliver_queued_webhook",
        allowed_networks="127.0.0.0/8",
        secrets_keys=KEY,
        timeout_s=2.0,
    ) as running:
        yield running


async def add_account(worker: QueueWorker, name: str = "hooks", **config: Any) -> None:
    sealed = SecretBox([KEY]).seal(orjson.dumps(config), f"provider_accounts/{name}")
    await worker.pool.execute(
        "INSERT INTO provider_accounts (name, kind, tenant_id, config, secrets)"
        " VALUES ($1, 'webhook', 'acme', '{}', $2)",
        *(name, sealed),
    )


async def test_a_webhook_is_signed_with_the_tenant_s_keys_and_is_the_same_on_every_attempt(
    worker: QueueWorker, receiver: Receiver
) -> None:
    await add_account(worker, secret=SECRET, headers={"x-shop": "acme"})
    receiver.answers = [Answer(500), Answer(204)]
    hook: dict[str, Any] = {"url": receiver.url, "type": "order.created", "data": {"order": 17}}
    with pytest.raises(Retry, match="HTTP_500"):
        await worker.deliver(**hook, priority="high")
    await worker.deliver(**hook, priority="high", attempt=2)
    first, second = receiver.requests
    verified = Webhook(SECRET).verify(second.body, dict(second.headers))
    assert verified == {
        "type": "order.created",
        "timestamp": "2023-11-14T22:13:20Z",
        "data": {"order": 17},
    }
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "m1"
    assert second.headers["x-shop"] == "acme"
    row = await worker.row()
    assert (row["status"], row["attempts"], row["provider"]) == ("delivered", 2, "hooks")


async def test_the_seed_s_form_without_an_account_is_delivered_unsigned(
    worker: QueueWorker, receiver: Receiver
) -> None:
    receiver.answers = [Answer(200)]
    await worker.deliver(url=receiver.url, event="order.created", payload={"order": 17})
    [received] = receiver.requests
    assert "webhook-signature" not in received.headers
    assert orjson.loads(received.body)["data"] == {"order": 17}
    assert (await worker.row())["provider"] == "default"


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Answer(410), "refused", "ENDPOINT_GONE"),
        (Answer(302, headers={"location": "/elsewhere"}), "queued", "HTTP_302"),
        (Answer(404), "queued", "HTTP_404"),
    ],
)
async def test_an_answer_decides_whether_the_webhook_is_tried_again(
    worker: QueueWorker, receiver: Receiver, answer: Answer, status: str, code: str
) -> None:
    receiver.answers = [answer]
    with pytest.raises((Retry, Reject)):
        await worker.deliver(url=receiver.url)
    row = await worker.row()
    assert (row["status"], row["error_code"]) == (status, code)


async def test_retry_after_sets_the_wait_if_it_is_long_and_does_not_burn_attempts_if_short(
    worker: QueueWorker, receiver: Receiver
) -> None:
    waits = []
    for seconds in ("120", "1"):
        receiver.answers = [Answer(503, headers={"retry-after": seconds})]
        with pytest.raises(Retry) as later:
            await worker.deliver(url=receiver.url)
        waits.append(later.value.delay_s)
    assert waits == [120.0, None]


async def test_private_addresses_are_refused(broker: Broker, postgres_dsn: str) -> None:
    async with running_queue(
        broker, postgres_dsn, "webhook", queued, "deliver_queued_webhook"
    ) as worker:
        for number, url in enumerate(("http://127.0.0.1:1/", "http://169.254.169.254/"), 1):
            with pytest.raises(Reject) as refused:
                await worker.deliver(number, url=url)
            assert refused.value.code == "DESTINATION_NOT_ALLOWED"


async def test_an_endpoint_that_fails_is_paused_and_its_webhooks_use_up_no_attempt(
    worker: QueueWorker, receiver: Receiver
) -> None:
    receiver.answers = [Answer(500)]
    for number in range(1, 11):
        with pytest.raises(Retry):
            await worker.deliver(number, url=receiver.url)
    with pytest.raises(Retry, match="ENDPOINT_PAUSED") as paused:
        await worker.deliver(11, url=receiver.url)
    assert paused.value.counts is False
    assert len(receiver.requests) == 10
    # Another tenant's webhooks to the same URL have a breaker of their own.
    receiver.answers = [Answer(200)]
    await worker.deliver(12, url=receiver.url, tenant_id="other")
    assert (await worker.row("m12"))["status"] == "delivered"


async def test_an_attempt_that_was_lost_is_made_again_since_the_receiver_knows_its_id(
    worker: QueueWorker, receiver: Receiver
) -> None:
    gate = asyncio.Event()
    receiver.answers = [Answer(200, held=gate), Answer(200)]
    call = asyncio.create_task(worker.deliver(url=receiver.url))
    await receiver.received(1)
    call.cancel()
    await asyncio.wait([call])
    gate.set()
    await worker.pool.execute("UPDATE messages SET lease_until = now() - interval '1 s'")
    await worker.deliver(url=receiver.url)
    assert (await worker.row())["status"] == "delivered"
    assert [each.headers["webhook-id"] for each in receiver.requests] == ["m1", "m1"]


async def test_webhooks_retry_gives_a_webhook_that_was_given_up_five_attempts_more(
    worker: QueueWorker, receiver: Receiver
) -> None:
    receiver.answers = [Answer(500)]
    for attempt in range(1, 6):
        with pytest.raises((Retry, Reject)):
            await worker.deliver(url=receiver.url, attempt=attempt)
    assert (await worker.row())["status"] == "failed"
    # A redelivery on webhooks.deliver sends nothing.
    await worker.deliver(url=receiver.url)
    assert len(receiver.requests) == 5

    later: dict[str, Any] = {"on": "webhooks.retry", "stored_at_ns": 4_000_000_000_000_000_000}
    with pytest.raises(Retry, match="HTTP_500"):
        await worker.deliver(url=receiver.url, **later)
    assert (await worker.row())["status"] == "queued"
    receiver.answers = [Answer(200)]
    await worker.deliver(url=receiver.url, **later, attempt=2)
    row = await worker.row()
    assert (row["status"], row["attempts"]) == ("delivered", 7)
    # Neither a redelivery nor another retry sends what is delivered.
    await worker.deliver(url=receiver.url, **later)
    assert len(receiver.requests) == 7


async def test_a_redelivered_retry_does_not_begin_anew(
    worker: QueueWorker, receiver: Receiver
) -> None:
    receiver.answers = [Answer(410)]
    with pytest.raises(Reject):
        await worker.deliver(url=receiver.url)
    # The retry was published before the webhook was given up.
    await worker.deliver(url=receiver.url, on="webhooks.retry")
    assert len(receiver.requests) == 1


async def test_a_retry_of_an_unknown_webhook_delivers_it(
    worker: QueueWorker, receiver: Receiver
) -> None:
    receiver.answers = [Answer(200)]
    await worker.deliver(url=receiver.url, on="webhooks.retry")
    assert (await worker.row())["status"] == "delivered"
