from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox, Parked
from runtime.broker.streams import ensure
from runtime.errors import PublishFailed
from runtime.manifest.model import Manifest
from runtime.message import Message
from tests.support.deliveries import pull
from tests.support.versions import parks

WORK = {"handler": "some.module:handle", "consumer": {"stream": "JOBS"}}
HOUR_S = 3600.0


@pytest.fixture
async def mailbox(broker: Broker) -> Mailbox:
    for stream in ("JOBS", "MAILBOX"):
        if stream in ((await broker.api("STREAM.NAMES")).get("streams") or []):
            await broker.api(f"STREAM.DELETE.{stream}")
    streams = {"JOBS": {"subjects": ["jobs.>"]}}
    manifest = {"streams": streams, "functions": {"work": WORK, "rest": WORK}}
    await ensure(broker, Manifest.model_validate(manifest))
    mailbox = Mailbox(broker)
    await mailbox.ensure()
    return mailbox


async def _delivered(broker: Broker, data: bytes = b"job", **headers: str) -> Message:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    await broker.publish("jobs.a", data, headers=sent)
    [message] = await pull(broker, "JOBS", "work")
    await broker.send(message.reply, b"+ACK")
    return message


async def _parked(mailbox: Mailbox, function: str | None = None) -> list[Parked]:
    return [parked async for parked in mailbox.list_parked(function)]


@parks
async def test_a_parked_message_comes_back_to_its_function_with_its_identity(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker, b"\x00\xff", Trace="t1", Nats_Msg_Id="mine")
    message.attempt = 3

    await mailbox.park(message, "work", 0.1, "the endpoint is away")
    [delivery] = await pull(broker, "MAILBOX", "work")
    restored = mailbox.restore(delivery)

    assert mailbox.supports_parking
    assert restored.data == b"\x00\xff"
    assert restored.headers == {"Trace": "t1", "Nats-Msg-Id": "mine"}
    assert (restored.stream, restored.sequence) == ("JOBS", message.sequence)
    assert (restored.subject, restored.stored_at_ns) == ("jobs.a", message.stored_at_ns)
    assert restored.reply == delivery.reply
    assert restored.attempt == 4
    assert await _parked(mailbox) == []


@parks
async def test_a_delivery_that_does_not_count_is_parked_again_and_again_with_its_attempt(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    for _ in range(3):
        await mailbox.park(message, "work", 0, counts=False)
        [delivery] = await pull(broker, "MAILBOX", "work")
        await broker.send(delivery.reply, b"+ACK")
        message = mailbox.restore(delivery)
        assert message.attempt == 1
    await mailbox.park(message, "work", 0)
    [delivery] = await pull(broker, "MAILBOX", "work")
    assert mailbox.restore(delivery).attempt == 2


@parks
async def test_attempts_go_on_counting_through_redeliveries_and_further_parking(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    await mailbox.park(message, "work", 0)

    seen = []
    for _ in range(3):
        [delivery] = await pull(broker, "MAILBOX", "work")
        seen.append(mailbox.restore(delivery).attempt)
        await broker.send(delivery.reply, b"-NAK")
    [delivery] = await pull(broker, "MAILBOX", "work")
    await mailbox.park(mailbox.restore(delivery), "work", 0)
    await broker.send(delivery.reply, b"+ACK")
    [again] = await pull(broker, "MAILBOX", "work")

    assert seen == [2, 3, 4]
    assert mailbox.restore(again).attempt == 6


@parks
async def test_the_same_message_is_parked_once_however_often_its_ack_is_lost(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)

    first = await mailbox.park(message, "work", HOUR_S)
    second = await mailbox.park(message, "work", HOUR_S)
    message.attempt += 1
    await mailbox.park(message, "work", HOUR_S)

    assert second.duplicate
    assert second.sequence == first.sequence
    [parked] = await _parked(mailbox)
    assert parked.message.attempt == 3


@parks
async def test_two_functions_park_the_same_message_each_for_itself(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    await mailbox.park(message, "work", HOUR_S)
    await mailbox.park(message, "rest", HOUR_S)

    assert [parked.function for parked in await _parked(mailbox)] == ["work", "rest"]
    assert [parked.function for parked in await _parked(mailbox, "rest")] == ["rest"]


@parks
async def test_what_is_parked_can_be_seen_with_its_reason_and_its_time(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    before = datetime.now(UTC)

    await mailbox.park(message, "work", HOUR_S, "no answer\nfrom münchen")

    [parked] = await _parked(mailbox)
    assert parked.reason == "no answer\nfrom münchen"
    assert (
        timedelta(seconds=-1) < parked.due_at - before - timedelta(hours=1) < timedelta(minutes=1)
    )
    assert parked.message.sequence == message.sequence


@parks
async def test_a_parked_message_that_is_run_now_comes_at_once_and_only_once(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    await mailbox.park(message, "work", HOUR_S)
    [parked] = await _parked(mailbox)

    assert await mailbox.run_now(parked.sequence)
    deliveries = await pull(broker, "MAILBOX", "work", 2, wait_s=1.5)

    [restored] = [mailbox.restore(delivery) for delivery in deliveries]
    assert (restored.sequence, restored.attempt) == (message.sequence, 2)
    assert not await mailbox.run_now(parked.sequence)


@parks
async def test_a_parked_message_that_is_run_now_comes_with_any_headers_of_its_publisher(
    broker: Broker, mailbox: Mailbox
) -> None:
    headers = {"Nats-Expected-Last-Subject-Sequence": "0", "Nats-Schedule-Next": "purge"}
    message = replace(await _delivered(broker), headers=headers)
    await mailbox.park(message, "work", HOUR_S)
    [parked] = await _parked(mailbox)

    assert await mailbox.run_now(parked.sequence)
    [delivery] = await pull(broker, "MAILBOX", "work")

    assert mailbox.restore(delivery).headers == headers


async def test_a_message_with_an_id_of_its_own_is_posted_once(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = replace(await _delivered(broker), headers={"Nats-Msg-Id": "theirs"})

    await mailbox.post(message, "work")

    assert (await mailbox.post(message, "work")).duplicate


@parks
async def test_a_cancelled_message_never_comes(broker: Broker, mailbox: Mailbox) -> None:
    await mailbox.park(await _delivered(broker), "work", HOUR_S)
    [parked] = await _parked(mailbox)

    assert await mailbox.cancel(parked.sequence)

    assert await _parked(mailbox) == []
    assert not await mailbox.cancel(parked.sequence)


async def test_a_message_that_is_due_already_can_no_longer_be_cancelled(
    broker: Broker, mailbox: Mailbox
) -> None:
    ack = await mailbox.post(await _delivered(broker), "work")

    assert not await mailbox.cancel(ack.sequence)
    assert len(await pull(broker, "MAILBOX", "work")) == 1


async def test_a_posted_message_reaches_the_function_alone_and_starts_anew(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    message.attempt = 5

    await mailbox.post(message, "work")
    again = await mailbox.post(message, "work")

    [delivery] = await pull(broker, "MAILBOX", "work", 2, wait_s=1.0)
    assert again.duplicate
    assert mailbox.restore(delivery).attempt == 1
    assert await pull(broker, "MAILBOX", "rest", wait_s=0.2) == []


async def test_a_message_that_somebody_put_there_by_hand_is_not_changed(
    broker: Broker, mailbox: Mailbox
) -> None:
    await broker.publish("mailbox.ready.work", b"by hand", headers={"Runtime-Sequence": "x"})

    [delivery] = await pull(broker, "MAILBOX", "work")

    assert mailbox.restore(delivery) is delivery


@parks
async def test_a_thousand_parked_messages_all_come_back_once(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    for sequence in range(1, 1001):
        message.sequence = sequence
        await mailbox.park(message, "work", 0.2)

    deliveries = await pull(broker, "MAILBOX", "work", 1000)

    assert sorted(mailbox.restore(each).sequence for each in deliveries) == list(range(1, 1001))
    assert await pull(broker, "MAILBOX", "work", wait_s=0.5) == []


async def test_without_message_schedules_parking_is_refused_and_posting_works(
    broker: Broker, mailbox: Mailbox
) -> None:
    message = await _delivered(broker)
    await broker.api("STREAM.DELETE.MAILBOX")
    older = {"name": "MAILBOX", "subjects": ["mailbox.>"], "retention": "workqueue"}
    await broker.api("STREAM.CREATE.MAILBOX", {**older, "storage": "file", "num_replicas": 1})

    await mailbox.detect_parking()

    assert not mailbox.supports_parking
    with pytest.raises(PublishFailed, match="takes no message schedules"):
        await mailbox.park(message, "work", 60)
    assert not (await mailbox.post(message, "work")).duplicate
