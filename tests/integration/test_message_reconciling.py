"""What stands in the database and not in NATS is published, and old messages are forgotten."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import structlog.testing

from functions.messages.contents import OutMessage, QueuedSms, QueuedWebhook
from functions.messages.provider import Admission
from functions.messages.reconciling import (
    ReconcileSettings,
    forget_messages,
    reconcile_messages,
)
from functions.messages.store import Claim, NewMessage
from functions.messages.waiting import WaitingBound
from runtime import Retry
from runtime.broker.connection import Broker
from tests.support.messaging import SMS, Worker, running_worker, stored


@pytest.fixture
async def worker(broker: Broker, postgres_dsn: str) -> AsyncIterator[Worker]:
    async with running_worker(broker, postgres_dsn) as running:
        running.scope.state = running.sender.store
        running.scope.settings = ReconcileSettings()
        yield running


async def accept(worker: Worker, name: str) -> None:
    """Commit the row of a message; then the process dies."""
    content = QueuedSms.model_validate(SMS)
    assert await worker.sender.store.accept(NewMessage(OutMessage("acme", name, content)))


async def make_due(worker: Worker) -> None:
    await worker.pool.execute(
        "UPDATE messages SET check_at = now() - interval '1 s' WHERE check_at IS NOT NULL"
    )
    await worker.pool.execute("UPDATE message_events SET at = at - interval '1 min'")


async def test_a_message_whose_publication_was_lost_gets_into_its_queue_once(
    worker: Worker, broker: Broker
) -> None:
    await accept(worker, "m1")
    await reconcile_messages(worker.context)
    assert await stored(broker, "SMS", "sms.send") == []
    await make_due(worker)
    for _ in range(2):
        await reconcile_messages(worker.context)
        await make_due(worker)
    [sent] = await stored(broker, "SMS", "sms.send")
    assert b'"m1"' in sent
    assert b"1234" in sent
    [told] = await worker.told()
    assert (told["message_id"], told["number"], told["status"]) == ("m1", 1, "queued")


async def test_a_message_that_waits_again_and_again_is_not_published_again(
    worker: Worker, broker: Broker
) -> None:
    await accept(worker, "m1")
    await make_due(worker)
    await reconcile_messages(worker.context)
    await broker.api("STREAM.PURGE.SMS", {"filter": "sms.send"})
    # An hour of waits has passed, and the message has left its stream.
    await worker.pool.execute("UPDATE messages SET number = 9")
    await make_due(worker)
    worker.provider.admission = Admission(wait_s=60.0, reason="NO_ACCOUNT: no account")
    with pytest.raises(Retry, match="NO_ACCOUNT"):
        await worker.deliver(message_id="m1")

    await reconcile_messages(worker.context)

    assert await stored(broker, "SMS", "sms.send") == []
    row = await worker.row()
    assert (row["error_code"], row["reason"]) == ("NO_ACCOUNT", "no account")


async def test_a_row_that_cannot_be_read_is_named_and_holds_up_no_other(
    worker: Worker, broker: Broker
) -> None:
    for name in ("m1", "m2"):
        await accept(worker, name)
    await make_due(worker)
    await worker.pool.execute(
        "UPDATE messages SET content = '{\"to\": 1}', check_at = check_at - interval '1 min'"
        " WHERE message_id = 'm1'"
    )
    with structlog.testing.capture_logs() as logged:
        await reconcile_messages(worker.context)
    [sent] = await stored(broker, "SMS", "sms.send")
    assert b'"m2"' in sent
    [line] = [each for each in logged if each["log_level"] == "error"]
    assert line["message_id"] == "m1"


async def test_a_number_is_published_and_claimed_as_it_was_accepted(
    worker: Worker, broker: Broker
) -> None:
    data = '{"numbers": [1e20, 1e300, -0.0, 123456789012345678.0, 1.0, 0.1, 9007199254740993]}'
    written = f'{{"url": "https://example.com/", "data": {data}}}'
    content = QueuedWebhook.model_validate_json(written)
    store = worker.sender.store
    assert await store.accept(NewMessage(OutMessage("acme", "m1", content)))
    await make_due(worker)

    await reconcile_messages(worker.context)

    [sent] = await stored(broker, "WEBHOOKS", "webhooks.deliver")
    message = OutMessage("acme", "m1", QueuedWebhook.model_validate_json(sent))
    assert repr(message.content.data) == repr(content.data)
    assert await store.claim(Claim(message, "account", 30.0))


async def test_a_message_that_a_full_stream_has_deleted_unread_is_queued_again(
    worker: Worker, broker: Broker
) -> None:
    await accept(worker, "m1")
    await make_due(worker)
    await reconcile_messages(worker.context)
    await broker.api("STREAM.PURGE.SMS", {"filter": "sms.send"})
    # The stream knows ids for its duplicate window: as much later, they are forgotten.
    await worker.pool.execute("UPDATE messages SET number = 9")
    await make_due(worker)
    await reconcile_messages(worker.context)
    [sent] = await stored(broker, "SMS", "sms.send")
    assert b'"m1"' in sent


async def test_a_queue_that_is_nearly_full_of_unread_messages_is_told_of(
    worker: Worker, broker: Broker
) -> None:
    while (await broker.api("STREAM.INFO.SMS"))["state"]["bytes"] < 8_500_000:
        for _ in range(10):
            await broker.publish("sms.send", b"x" * 100_000)
    with structlog.testing.capture_logs() as logged:
        await reconcile_messages(worker.context)
    [line] = [each for each in logged if each["log_level"] == "error"]
    assert line["queue"] == "SMS"
    assert line["full_percent"] >= 80


async def test_messages_are_forgotten_after_their_time_if_nothing_is_to_be_done_about_them(
    worker: Worker,
) -> None:
    statuses = ("queued", "sending", "unknown", "sent", "delivered", "failed", "refused")
    for status in ("new", *statuses):
        await accept(worker, status)
    await worker.pool.execute(
        "UPDATE messages SET status = message_id, updated_at = now() - interval '31 days'"
        " WHERE message_id <> 'new'"
    )
    await forget_messages(worker.context)
    rows = await worker.pool.fetch("SELECT message_id FROM message_events")
    assert {row["message_id"] for row in rows} == {"new", "queued", "sending", "unknown"}


async def test_a_tenants_waiting_messages_are_bounded_and_anothers_are_not(worker: Worker) -> None:
    for number in range(3):
        await accept(worker, f"m{number}")
    await worker.pool.execute("UPDATE messages SET status = 'sent' WHERE message_id = 'm0'")
    bound = WaitingBound(worker.pool, 4)
    taken = await asyncio.gather(*(bound.take("acme") for _ in range(5)))
    assert sum(taken) == 2
    assert await bound.take("other")
