from datetime import UTC, datetime
from pathlib import Path

import pytest

from runtime import Context, Event, Retry
from runtime.broker.connection import Broker
from runtime.broker.mailbox import Mailbox
from runtime.broker.streams import ensure
from runtime.manifest.model import Manifest
from runtime.message import Message
from tests.support.command import SKEWED, runtime
from tests.support.host import Journal, eventually, fresh, running_host
from tests.support.servers import NatsServer

WORK = {"handler": "some.module:handle", "consumer": {"stream": "JOBS"}}


@pytest.fixture
async def mailbox(broker: Broker) -> Mailbox:
    for stream in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{stream}")
    streams = {"JOBS": {"subjects": ["jobs.>"]}}
    manifest = {"streams": streams, "functions": {"work": WORK, "rest": WORK}}
    await ensure(broker, Manifest.model_validate(manifest))
    mailbox = Mailbox(broker)
    await mailbox.detect_parking()
    return mailbox


def _message(sequence: int) -> Message:
    return Message("jobs.a", b"job", {}, "", "JOBS", sequence, 2, 1_790_000_000_000_000_000)


async def test_a_message_that_its_function_parked_for_hours_is_listed_and_run_now(
    nats_server: NatsServer, broker: Broker, tmp_path: Path
) -> None:
    stream, name = fresh("JOBS"), fresh("later")
    clock = tmp_path / "clock"
    clock.write_text("3600")
    calls = Journal()

    async def postpone(ctx: Context, event: Event[bytes]) -> None:
        calls.add((event.raw, event.attempt, event.sequence))
        if event.attempt == 1:
            raise Retry("the endpoint answered 503", delay_s=7200)

    async with running_host(
        nats_server.url,
        {name: {"handler": "on_event", "consumer": {"stream": stream}}},
        {name: postpone},
        streams={stream: {"subjects": [f"{stream}.>"]}},
    ):
        await broker.publish(f"{stream}.a", b"job")

        async def find() -> list[int]:
            done = await runtime(nats_server.url, "parked", "ls", "--function", name, "--json")
            return [document["sequence"] for document in done.documents]

        [sequence] = await eventually(find, "a parked message")
        # Expect the server's clock; this machine's clock is an hour ahead.
        ls = ("parked", "ls", "--function", name)
        listed = await runtime(nats_server.url, *ls, program=SKEWED, CLOCK_FILE=str(clock))
        done = await runtime(nats_server.url, "parked", "run-now", sequence)
        await calls.wait(2)

    row = listed.out.splitlines()[1]
    assert row.split()[0] == str(sequence)
    # Due in whole seconds, rounded up.
    assert "  1h 59m  " in row or "  2h  " in row
    assert row.endswith(f"  {name}        2  {stream}.a  the endpoint answered 503")
    assert listed.rows[0] == ["SEQ", "DUE", "AT", "IN", "FUNCTION", "ATTEMPT", "SUBJECT", "REASON"]
    assert (done.code, done.out) == (0, "1 parked message made due now\n")
    assert calls.entries == [(b"job", 1, 1), (b"job", 2, 1)]


async def test_the_list_begins_with_what_is_due_first(
    nats_server: NatsServer, mailbox: Mailbox
) -> None:
    for sequence, delay_s in ((1, 900), (2, 300), (3, 600)):
        await mailbox.park(_message(sequence), "work", delay_s)

    done = await runtime(nats_server.url, "parked", "ls", "--limit", 2)
    documents = (await runtime(nats_server.url, "parked", "ls", "--json")).documents

    assert [row[0] for row in done.rows] == ["SEQ", "2", "3", "the"]
    assert done.out.endswith("the first 2 of 3 parked messages; --limit 0 shows all\n")
    assert [document["stream_sequence"] for document in documents] == [2, 3, 1]
    first = datetime.fromisoformat(documents[0]["due_at"])
    assert 200 < (first - datetime.now(UTC)).total_seconds() <= 300
    assert documents[0]["attempt"] == 3


async def test_all_messages_of_a_function_are_run_now_and_no_others(
    nats_server: NatsServer, broker: Broker, mailbox: Mailbox
) -> None:
    for sequence in range(1, 21):
        await mailbox.park(_message(sequence), "work", 3600)
    await mailbox.park(_message(99), "rest", 3600)

    done = await runtime(nats_server.url, "parked", "run-now", "--function", "work")

    async def ready() -> bool:
        found = await broker.api("CONSUMER.INFO.MAILBOX.work")
        return bool(found["num_pending"] == 20)

    await eventually(ready, "20 messages that are due")
    assert (done.code, done.out) == (0, "20 parked messages made due now\n")
    assert [each.function async for each in mailbox.list_parked()] == ["rest"]


async def test_cancelling_asks_and_gives_up_for_good(
    nats_server: NatsServer, mailbox: Mailbox
) -> None:
    acks = [await mailbox.park(_message(sequence), "work", 3600) for sequence in (1, 2, 3)]
    url = nats_server.url

    refused = await runtime(url, "parked", "cancel", acks[0].sequence, stdin="n\n")
    assert len([each async for each in mailbox.list_parked()]) == 3
    forced = await runtime(url, "parked", "cancel", acks[0].sequence, 9999, "--yes")
    agreed = await runtime(url, "parked", "cancel", "--function", "work", stdin="y\n")

    assert refused.code == 1
    assert "Give 1 parked message up for good? [y/N]" in refused.err
    assert forced.out == "1 parked message cancelled\n1 of 2 were no longer waiting\n"
    assert (agreed.code, agreed.out) == (0, "2 parked messages cancelled\n")
    assert (await runtime(url, "parked", "ls")).out == "No parked messages.\n"


async def test_nothing_to_do_exits_with_2(nats_server: NatsServer, mailbox: Mailbox) -> None:
    url = nats_server.url

    gone = await runtime(url, "parked", "run-now", 12345)
    none = await runtime(url, "parked", "cancel", "--function", "work")
    unclear = await runtime(url, "parked", "run-now")

    assert (gone.code, none.code, unclear.code) == (2, 2, 2)
    assert gone.err == "No such parked messages; nothing was done.\n"
    assert "either sequences, or --function" in unclear.err
