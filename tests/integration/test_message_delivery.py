"""Sending one message of a queue: claims, results, transitions, lost attempts."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import structlog.testing

from functions.messages.delivery import Policy, Sender
from functions.messages.letter_budget import LetterBudget
from functions.messages.provider import Admission, Receipt
from functions.messages.store import Advance
from runtime import Reject, Retry
from runtime.broker.connection import Broker
from tests.support.messaging import ScriptedProvider, Worker, running_worker

SENT = Receipt("sent", status_code=201, provider_id="SM1")
AWAY = Receipt("failed", "HTTP_500", "the provider answered 500", status_code=500)


@pytest.fixture
async def worker(broker: Broker, postgres_dsn: str) -> AsyncIterator[Worker]:
    async with running_worker(broker, postgres_dsn) as running:
        yield running


async def test_a_published_message_gets_a_row_is_sent_and_each_transition_is_told_once(
    worker: Worker,
) -> None:
    worker.provider.results = [SENT]
    await worker.deliver(message_id="m1")
    await worker.deliver(message_id="m1")  # A redelivery.
    [sent] = worker.provider.sent
    assert (sent.tenant_id, sent.message_id, sent.content.to) == ("acme", "m1", "+436641234567")
    row = await worker.row()
    assert (row["status"], row["attempts"], row["provider"]) == ("sent", 1, "test-account")
    assert row["provider_id"] == "SM1"
    told = await worker.told()
    assert [(one["number"], one["status"]) for one in told] == [
        (1, "queued"),
        (2, "sending"),
        (3, "sent"),
    ]
    assert {one["message_id"] for one in told} == {"m1"}
    [attempt] = await worker.attempts()
    assert (attempt["outcome"], attempt["status_code"]) == ("sent", 201)
    await worker.sender.store.close()
    left = await worker.pool.fetchval(
        "SELECT count(*) FROM message_events WHERE announced_at IS NULL"
    )
    assert left == 0


async def test_a_message_without_ids_is_known_by_its_place_in_the_stream(worker: Worker) -> None:
    worker.provider.results = [SENT]
    for _ in range(2):
        await worker.deliver(7, tenant_id=None)
    [sent] = worker.provider.sent
    assert sent.tenant_id == "default"
    assert sent.message_id == "SMS-7-1700000000000000007"


async def test_a_failed_attempt_is_made_again_and_the_fifth_is_the_last(worker: Worker) -> None:
    worker.provider.results = [AWAY]
    for attempt in range(1, 5):
        with pytest.raises(Retry, match="HTTP_500"):
            await worker.deliver(message_id="m1", attempt=attempt)
        assert (await worker.row())["status"] == "queued"
    with pytest.raises(Reject) as last:
        await worker.deliver(message_id="m1", attempt=5)
    assert last.value.code == "HTTP_500"
    row = await worker.row()
    assert (row["status"], row["attempts"], row["error_code"]) == ("failed", 5, "HTTP_500")
    assert row["check_at"] is None
    await worker.deliver(message_id="m1")
    assert len(worker.provider.sent) == 5


async def test_a_refused_message_is_never_tried_again(worker: Worker) -> None:
    worker.provider.results = [Receipt("refused", "TWILIO_21211", "not a number")]
    with pytest.raises(Reject):
        await worker.deliver(message_id="m1")
    await worker.deliver(message_id="m1")
    assert len(worker.provider.sent) == 1
    assert [one["status"] for one in await worker.told()] == ["queued", "sending", "refused"]


async def test_messages_that_are_given_up_leave_letters_up_to_the_budget_of_their_tenant(
    worker: Worker,
) -> None:
    budget = LetterBudget(worker.scope.log, 5_000)
    worker.sender = replace(worker.sender, letters=budget)
    worker.provider.results = [Receipt("refused", "TWILIO_21211", "not a number")]

    async def leaves_letter(number: int, tenant_id: str = "acme") -> bool:
        try:
            await worker.deliver(number, message_id=f"m{number}", tenant_id=tenant_id)
        except Reject:
            return True
        return False

    left = [await leaves_letter(number) for number in range(6)]
    assert left == [True, True, False, False, False, False]
    assert await leaves_letter(9, tenant_id="other")
    # All have their rows, by which they are shown and sent again.
    for number in range(6):
        row = await worker.row(f"m{number}")
        assert (row["status"], row["error_code"]) == ("refused", "TWILIO_21211")


async def test_a_busy_provider_uses_up_no_attempt(worker: Worker) -> None:
    worker.provider.results = [Receipt("busy", "HTTP_429", "busy", retry_after_s=7.0)]
    for _ in range(7):
        with pytest.raises(Retry) as later:
            await worker.deliver(message_id="m1")
        assert (later.value.delay_s, later.value.counts) == (7.0, False)
    row = await worker.row()
    assert (row["status"], row["attempts"], row["free_attempts"]) == ("queued", 7, 7)
    await worker.pool.execute("UPDATE messages SET created_at = now() - interval '2 days'")
    worker.provider.results = [AWAY]
    with pytest.raises(Retry):
        await worker.deliver(message_id="m1")


async def test_a_lost_attempt_is_unknown_and_not_made_again(worker: Worker) -> None:
    died = asyncio.Event()

    async def die() -> Receipt:
        died.set()
        await asyncio.Event().wait()
        raise AssertionError

    worker.provider.results = [die, SENT]
    call = asyncio.create_task(worker.deliver(message_id="m1"))
    await died.wait()
    call.cancel()
    await asyncio.wait([call])
    with pytest.raises(Retry, match="may still be running") as early:
        await worker.deliver(message_id="m1")
    assert early.value.counts is False
    assert early.value.delay_s is not None
    assert early.value.delay_s > 20
    await worker.lose_lease()
    await worker.deliver(message_id="m1")
    await worker.deliver(message_id="m1")
    assert len(worker.provider.sent) == 1
    row = await worker.row()
    assert (row["status"], row["error_code"]) == ("unknown", "ATTEMPT_LOST")
    assert [one["status"] for one in await worker.told()] == ["queued", "sending", "unknown"]


async def test_a_lost_attempt_is_made_again_where_the_recipient_recognizes_repeats(
    worker: Worker,
) -> None:
    worker.provider.repeats_are_safe = True
    worker.provider.results = [asyncio.CancelledError(), SENT]
    with pytest.raises(asyncio.CancelledError):
        await worker.deliver(message_id="m1")
    await worker.lose_lease()
    await worker.deliver(message_id="m1")
    assert len(worker.provider.sent) == 2
    assert [one["outcome"] for one in await worker.attempts()] == ["unknown", "sent"]


async def test_an_answer_that_comes_after_the_attempt_was_given_up_still_counts(
    worker: Worker,
) -> None:
    calling, answer = asyncio.Event(), asyncio.Event()

    async def take_long() -> Receipt:
        calling.set()
        await answer.wait()
        return SENT

    worker.provider.results = [take_long]
    first = asyncio.create_task(worker.deliver(message_id="m1"))
    await calling.wait()
    await worker.lose_lease()
    await worker.deliver(message_id="m1")
    assert (await worker.row())["status"] == "unknown"
    answer.set()
    await first
    assert (await worker.row())["status"] == "sent"


async def test_an_answer_that_comes_after_another_attempt_is_told_of(worker: Worker) -> None:
    calling, answer = asyncio.Event(), asyncio.Event()

    async def take_long() -> Receipt:
        calling.set()
        await answer.wait()
        return Receipt("sent", provider_id="SM0")

    worker.provider.results = [take_long, SENT]
    first = asyncio.create_task(worker.deliver(message_id="m1"))
    await calling.wait()
    await worker.lose_lease()
    await worker.deliver(message_id="m1")
    # A look-up has not found it.
    await worker.sender.store.advance(Advance("acme", "m1", 1, "queued", "unknown"))
    await worker.deliver(message_id="m1")
    with structlog.testing.capture_logs() as logged:
        answer.set()
        await first
    assert [one["provider_id"] for one in await worker.attempts()] == ["SM0", "SM1"]
    assert (await worker.row())["provider_id"] == "SM1"
    [line] = [one for one in logged if one["log_level"] == "warning"]
    assert (line["message_id"], line["attempt"], line["outcome"]) == ("m1", 1, "sent")


async def test_code_that_fails_or_takes_too_long_leaves_the_result_unknown(worker: Worker) -> None:
    worker.provider.results = [ValueError("secret")]
    await worker.deliver(message_id="m1")
    row = await worker.row()
    assert (row["status"], row["error_code"]) == ("unknown", "PROVIDER_FAILED")
    assert "secret" not in str(row)
    slow = ScriptedProvider([lambda: asyncio.Event().wait()])
    quick = Sender(worker.sender.store, slow, Policy(call_s=0.05))
    worker.sender = quick
    await worker.deliver(message_id="m2")
    assert (await worker.row("m2"))["error_code"] == "TIMEOUT"


async def test_a_message_that_may_not_be_sent_yet_comes_again_and_leaves_no_attempt(
    worker: Worker,
) -> None:
    worker.provider.admission = Admission("a", wait_s=60.0, reason="quiet hours")
    with pytest.raises(Retry, match="quiet hours") as later:
        await worker.deliver(message_id="m1")
    assert (later.value.delay_s, later.value.counts) == (60.0, False)
    assert await worker.attempts() == []


async def test_two_messages_may_not_share_an_id_and_two_tenants_may(worker: Worker) -> None:
    worker.provider.results = [SENT]
    await worker.deliver(message_id="m1")
    with pytest.raises(Reject) as reused:
        await worker.deliver(message_id="m1", body="another text")
    assert reused.value.code == "MESSAGE_ID_REUSED"
    await worker.deliver(message_id="m1", tenant_id="other", body="another text")
    assert len(worker.provider.sent) == 2


async def test_many_deliveries_of_one_message_at_once_send_it_once(worker: Worker) -> None:
    worker.provider.results = [SENT]
    outcomes = await asyncio.gather(
        *(worker.deliver(message_id="m1") for _ in range(20)), return_exceptions=True
    )
    assert len(worker.provider.sent) == 1
    assert all(one is None or isinstance(one, Retry) for one in outcomes)
    assert len(await worker.told()) == 3
