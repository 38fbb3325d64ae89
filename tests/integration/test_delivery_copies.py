"""Of two stored messages of one job, one is the job, whichever is delivered first."""

from collections.abc import AsyncIterator

import pytest

from functions.domain.outbox import REPEATED_HEADER, NewJob, add_jobs
from runtime import Reject, Retry
from tests.support.receiver import Answer, Receiver
from tests.support.webhook_function import WebhookFunction, started

FIRST, SECOND = 1, 2
REPEATED = {REPEATED_HEADER: "7"}
JOB = "T-1-1-r"
REPLAY = "0b0e0f5c-9f6e-4f0c-8a53-2f5c3f3a7d11"


@pytest.fixture
async def webhook(postgres_dsn: str) -> AsyncIterator[WebhookFunction]:
    async with started(postgres_dsn) as function:
        yield function


async def make(webhook: WebhookFunction, route_id: str, refusal: str | None = None) -> None:
    async with webhook.pool.acquire() as connection, connection.transaction():
        job = NewJob("test", JOB, route_id, "webhook", b"{}", refusal, "routes.test.webhook")
        await add_jobs(connection, [job])


async def test_a_repeat_waits_and_is_sent_when_no_other_copy_was_tried(
    webhook: WebhookFunction,
) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        await make(webhook, route_id)
        with pytest.raises(Retry) as postponed:
            await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
        assert (postponed.value.delay_s, postponed.value.counts) == (7.0, False)
        assert not receiver.requests
        await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
        # The first copy was in the stream, after all.
        await webhook.deliver(route_id, sequence=FIRST)
    assert len(receiver.requests) == 1
    assert [one["attempt"] for one in await webhook.attempts()] == [1]


async def test_a_first_copy_that_comes_after_the_repeat_is_void_even_if_that_has_failed(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(500), Answer(200)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        await make(webhook, route_id)
        with pytest.raises(Retry):
            await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
        with pytest.raises(Retry):
            await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
        await webhook.deliver(route_id, sequence=FIRST)
        assert len(receiver.requests) == 1
        await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED, attempt=2)
    assert len(receiver.requests) == 2
    assert await webhook.job_status() == "delivered"


async def test_a_repeat_is_void_when_the_first_copy_was_tried_whatever_became_of_it(
    webhook: WebhookFunction,
) -> None:
    async with Receiver(Answer(500), Answer(200)) as receiver:
        route_id = await webhook.add_route(receiver.url)
        await make(webhook, route_id)
        with pytest.raises(Retry):
            await webhook.deliver(route_id, sequence=FIRST)
        await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
        assert len(receiver.requests) == 1
        await webhook.deliver(route_id, sequence=FIRST, attempt=2)
        await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
    assert len(receiver.requests) == 2


async def test_an_attempt_that_was_under_way_counts_and_the_repeat_that_waited_for_it_is_done(
    webhook: WebhookFunction,
) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        await make(webhook, route_id)
        with pytest.raises(Retry):
            await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
        # Found before the claim, sent after it.
        await webhook.pool.execute("UPDATE delivery_jobs SET only_copy = NULL")
        await webhook.deliver(route_id, sequence=FIRST)
        await webhook.pool.execute("UPDATE delivery_jobs SET only_copy = 'ROUTES-2-0'")
        await webhook.deliver(route_id, sequence=SECOND, headers=REPEATED)
    assert len(receiver.requests) == 1


async def test_a_copy_that_a_replay_sends_is_the_job_whichever_was_before(
    webhook: WebhookFunction,
) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        await make(webhook, route_id)
        with pytest.raises(Retry):
            await webhook.deliver(route_id, sequence=FIRST, headers=REPEATED)
        await webhook.pool.execute("UPDATE delivery_jobs SET replay_id = $1::text::uuid", REPLAY)
        await webhook.deliver(route_id, sequence=SECOND, replay_id=REPLAY)
    assert len(receiver.requests) == 1


async def test_a_job_that_was_refused_when_it_was_made_becomes_a_dead_letter_and_can_be_redriven(
    webhook: WebhookFunction,
) -> None:
    async with Receiver() as receiver:
        route_id = await webhook.add_route(receiver.url)
        await make(webhook, route_id, "TENANT_BACKLOG_FULL")
        with pytest.raises(Reject) as refused:
            await webhook.deliver(route_id)
        assert refused.value.code == "TENANT_BACKLOG_FULL"
        assert not receiver.requests
        [attempt] = await webhook.attempts()
        assert (attempt["outcome"], attempt["error_code"]) == ("refused", "TENANT_BACKLOG_FULL")
        await webhook.deliver(route_id)
    assert len(receiver.requests) == 1
    assert await webhook.job_status() == "delivered"


@pytest.mark.parametrize("asked", ["soon", "-1", "nan", "1e9"])
async def test_a_wait_that_no_hand_over_asks_for_is_bounded(
    webhook: WebhookFunction, asked: str
) -> None:
    route_id = await webhook.add_route("http://127.0.0.1:1/")
    await make(webhook, route_id)
    with pytest.raises(Retry) as postponed:
        await webhook.deliver(route_id, headers={REPEATED_HEADER: asked})
    assert postponed.value.delay_s in {30.0, 3600.0}
