import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters, FirstFailure, Selection
from runtime.broker.mailbox import Mailbox
from runtime.broker.streams import ensure
from runtime.errors import ConfigError, PublishFailed
from runtime.manifest.model import Manifest
from runtime.message import Message
from tests.support.deliveries import pull
from tests.support.servers import NatsServer

WORK = {"handler": "some.module:handle", "consumer": {"stream": "JOBS"}}
FAILED_AT = datetime(2026, 5, 4, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
async def letters(broker: Broker) -> DeadLetters:
    for stream in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{stream}")
    streams = {"JOBS": {"subjects": ["jobs.>"]}}
    manifest = {"streams": streams, "functions": {"work": WORK, "rest": WORK}}
    await ensure(broker, Manifest.model_validate(manifest))
    return DeadLetters(broker)


def _letter(sequence: int = 1, **fields: Any) -> DeadLetter:
    message = Message("jobs.a", b"job", {}, "", "JOBS", sequence, 5, 1_700_000_000_000_000_001)
    given: dict[str, Any] = {
        "function": "work", "message": message, "code": "BAD", "reason": "it is bad",
        "attempts": 5, "failed_at": FAILED_AT,
    }  # fmt: skip
    return DeadLetter(**{**given, **fields})


async def _all(letters: DeadLetters, selection: Selection | None = None) -> list[DeadLetter]:
    return [letter async for letter in letters.list(selection or Selection())]


async def test_a_dead_letter_keeps_bytes_headers_and_everything_about_the_failure(
    letters: DeadLetters,
) -> None:
    headers = {
        "Trace": "t1", "Nats-Msg-Id": "mine", "Nats-Rollup": "all", "Nats-TTL": "1s",
        "Nats-Expected-Stream": "OTHER", "Nats-Schedule": "@at 2030-01-01T00:00:00Z",
        "Name": "münchen", "Runtime-Function": "forged",
    }  # fmt: skip
    message = replace(_letter().message, data=bytes(range(256)), headers=headers)
    letter = _letter(
        message=message,
        error_type="ValueError",
        reason="line one\nline two €",
        traceback="Traceback:\n  File …\nValueError: é",
    )

    ack = await letters.store(letter)
    found = await letters.get(ack.sequence)

    assert found is not None
    assert found.message.data == bytes(range(256))
    assert found.message.headers == headers
    assert (found.message.stream, found.message.sequence) == ("JOBS", 1)
    assert found.message.stored_at_ns == 1_700_000_000_000_000_001
    assert found.reason == letter.reason
    assert found.traceback == letter.traceback
    assert (found.function, found.code, found.error_type) == ("work", "BAD", "ValueError")
    assert (found.attempts, found.failed_at) == (5, FAILED_AT)
    assert found.first_dead_letter == found.sequence == ack.sequence
    assert found.first_failure == FirstFailure(ack.sequence, FAILED_AT, "BAD", letter.reason)


async def test_storing_a_failure_twice_makes_one_dead_letter(letters: DeadLetters) -> None:
    first = await letters.store(_letter())
    second = await letters.store(_letter(code="MAX_DELIVERIES", attempts=6))
    other_function = await letters.store(_letter(function="rest"))

    assert second.duplicate
    assert not first.duplicate
    assert not other_function.duplicate
    assert await letters.counts() == {"work": 1, "rest": 1}


async def test_a_failure_is_stored_once_although_its_message_had_an_id_of_its_own(
    letters: DeadLetters,
) -> None:
    letter = _letter(message=replace(_letter().message, headers={"Nats-Msg-Id": "theirs"}))

    await letters.store(letter)

    assert (await letters.store(letter)).duplicate


async def test_a_stream_made_anew_reuses_sequences_but_not_dead_letters(
    letters: DeadLetters,
) -> None:
    await letters.store(_letter())
    later = replace(_letter().message, stored_at_ns=1_800_000_000_000_000_000)

    assert not (await letters.store(_letter(message=later))).duplicate


async def test_a_message_as_large_as_the_server_takes_is_kept_whole(
    broker: Broker, letters: DeadLetters
) -> None:
    data = bytes(index % 251 for index in range(broker.max_payload_bytes))
    message = replace(_letter().message, data=data)
    letter = _letter(message=message, traceback="x" * 20_000)

    ack = await letters.store(letter)
    await letters.store(letter)

    [found] = await _all(letters)
    assert found.message.data == data
    assert (await letters.redrive()).too_large == (ack.sequence,)
    assert await letters.purge(Selection(code="BAD")) == 1
    assert (await broker.api("STREAM.INFO.DEAD_LETTERS"))["state"]["messages"] == 0


async def test_headers_of_any_size_never_keep_a_dead_letter_from_being_stored(
    letters: DeadLetters,
) -> None:
    headers = {"Small": "s", "Large": "l" * 40_000, "Larger": "é" * 30_000}
    letter = _letter(
        message=replace(_letter().message, headers=headers),
        reason="€" * 90_000, code="C" * 9_000, traceback="\n€" * 90_000,
    )  # fmt: skip

    found = await letters.get((await letters.store(letter)).sequence)

    assert found is not None
    assert set(found.message.headers) == {"Small", "Large"}
    assert found.reason.startswith("€€€")
    assert found.traceback.endswith(("€", "..."))


async def test_the_list_is_narrowed_by_function_code_time_and_subject(letters: DeadLetters) -> None:
    await letters.store(_letter(1))
    await letters.store(_letter(2, function="rest"))
    await letters.store(_letter(3, code="WORSE"))
    await letters.store(_letter(4, failed_at=FAILED_AT + timedelta(hours=1)))
    await letters.store(_letter(5, message=replace(_letter(5).message, subject="jobs.b.c")))

    async def sequences(**fields: Any) -> list[int]:
        return [each.message.sequence for each in await _all(letters, Selection(**fields))]

    assert await sequences() == [1, 2, 3, 4, 5]
    assert await sequences(function="rest") == [2]
    assert await sequences(code="WORSE") == [3]
    assert await sequences(since=FAILED_AT + timedelta(seconds=1)) == [4]
    assert await sequences(until=FAILED_AT + timedelta(seconds=1), function="work") == [1, 3, 5]
    assert await sequences(subject="jobs.b.>") == [5]
    assert await sequences(subject="jobs.*", code="BAD", function="work") == [1, 4]


async def test_a_redrive_reaches_the_failing_function_alone(
    broker: Broker, letters: DeadLetters
) -> None:
    message = replace(_letter().message, headers={"Nats-Msg-Id": "mine", "A": "b"})
    ack = await letters.store(_letter(message=message))
    done: list[int] = []

    redriven = await letters.redrive(on_progress=done.append)

    assert redriven.posted == 1
    assert done == [1]
    [delivery] = await pull(broker, "MAILBOX", "work")
    restored = Mailbox(broker).restore(delivery)
    assert (restored.stream, restored.sequence, restored.attempt) == ("JOBS", 1, 1)
    assert restored.stored_at_ns == message.stored_at_ns
    assert restored.headers["Nats-Msg-Id"] == "mine"
    assert restored.headers["Runtime-First-Dead-Letter"] == str(ack.sequence)
    assert restored.headers["Runtime-First-Code"] == "BAD"
    assert await pull(broker, "MAILBOX", "rest", wait_s=0.2) == []
    assert await pull(broker, "JOBS", "work", wait_s=0.2) == []
    assert await _all(letters) == []


async def test_a_redriven_message_that_fails_again_is_a_new_dead_letter_with_a_link(
    broker: Broker, letters: DeadLetters
) -> None:
    mailbox = Mailbox(broker)
    first = await letters.store(_letter(reason="it is bad\nat first €"))
    seen = []
    for _ in range(3):
        assert (await letters.redrive()).posted == 1
        [delivery] = await pull(broker, "MAILBOX", "work")
        await broker.send(delivery.reply, b"+TERM")
        ack = await letters.store(_letter(message=mailbox.restore(delivery), code="AGAIN"))
        assert not ack.duplicate
        [found] = await _all(letters)
        seen.append((found.redrives, found.first_dead_letter, found.code))

    assert seen == [(n, first.sequence, "AGAIN") for n in (1, 2, 3)]
    failure = FirstFailure(first.sequence, FAILED_AT, "BAD", "it is bad\nat first €")
    assert found.first_failure == failure


async def test_redriving_twice_at_once_doubles_nothing(
    broker: Broker, letters: DeadLetters
) -> None:
    for sequence in range(1, 151):
        await letters.store(_letter(sequence))

    await asyncio.gather(letters.redrive(), letters.redrive(), DeadLetters(broker).redrive())

    deliveries = await pull(broker, "MAILBOX", "work", 400, wait_s=1.0)
    restored = sorted(Mailbox(broker).restore(each).sequence for each in deliveries)
    assert restored == list(range(1, 151))
    assert await _all(letters) == []


async def test_a_redrive_that_died_half_way_doubles_nothing_when_run_again(
    broker: Broker, letters: DeadLetters
) -> None:
    await letters.store(_letter())
    [letter] = await _all(letters)
    # The copy is posted and the dead letter still stored, as after a crash between the two steps.
    await broker.api("STREAM.UPDATE.DEAD_LETTERS", await _denying_deletes(broker))
    with pytest.raises(Exception, match=r"(?i)delete"):
        await letters.redrive(sequences=[letter.sequence])

    deliveries = await pull(broker, "MAILBOX", "work", 5, wait_s=0.3)
    with pytest.raises(Exception, match=r"(?i)delete"):
        await letters.redrive(sequences=[letter.sequence])

    assert len(deliveries) == 1
    assert await pull(broker, "MAILBOX", "work", 5, wait_s=0.3) == []


async def _denying_deletes(broker: Broker) -> dict[str, Any]:
    config: dict[str, Any] = (await broker.api("STREAM.INFO.DEAD_LETTERS"))["config"]
    return {**config, "deny_delete": True}


async def test_only_the_chosen_dead_letters_are_redriven(letters: DeadLetters) -> None:
    acks = [await letters.store(_letter(sequence)) for sequence in (1, 2, 3)]

    redriven = await letters.redrive(sequences=[acks[1].sequence, 9999])

    assert redriven.posted == 1
    assert [each.message.sequence for each in await _all(letters)] == [1, 3]


async def test_a_redrive_to_a_function_that_nobody_runs_is_refused(letters: DeadLetters) -> None:
    await letters.store(_letter(function="gone"))

    with pytest.raises(ConfigError, match="function gone: it has no mailbox"):
        await letters.redrive()

    assert len(await _all(letters)) == 1


async def test_a_purge_removes_only_what_is_meant(letters: DeadLetters) -> None:
    await letters.store(_letter(1))
    await letters.store(_letter(2, code="WORSE"))
    await letters.store(_letter(3, function="rest"))

    assert await letters.purge(Selection(code="WORSE")) == 1
    assert await letters.purge(Selection(function="work")) == 1
    assert [each.function for each in await _all(letters)] == ["rest"]
    assert await letters.purge() == 1


async def test_without_the_stream_nothing_pretends_to_be_stored(
    broker: Broker, letters: DeadLetters
) -> None:
    await broker.api("STREAM.DELETE.DEAD_LETTERS")

    with pytest.raises(PublishFailed):
        await letters.store(_letter())


class SmallServer(NatsServer):
    """A nats-server that accepts messages of at most 8 KB."""

    limit_bytes = 8192

    def configuration(self) -> str:
        """The embedded server's configuration, with a smaller limit."""
        plain = super().configuration()
        return re.sub(r"max_payload: .*", f"max_payload: {self.limit_bytes}", plain)


async def test_a_server_that_takes_small_messages_alone_keeps_every_byte_of_a_dead_letter(
    server_directory: Path,
) -> None:
    server = SmallServer(server_directory)
    broker = await Broker.connect(server.url, name="test")
    letters = DeadLetters(broker)
    await letters.ensure()
    whole = bytes(range(256)) * (SmallServer.limit_bytes // 256)
    trace = "line\n" * 5000
    cases = {
        "full": replace(_letter().message, data=whole, sequence=1),
        "headed": replace(
            _letter().message,
            data=whole[:5000],
            headers={f"Own-{n}": "v" * 90 for n in range(12)},
            sequence=2,
        ),
        "long": replace(
            _letter().message, subject="jobs." + "x" * 3000, data=whole[:5000], sequence=3
        ),
    }

    for message in cases.values():
        await letters.store(_letter(message=message, reason="r" * 9000, traceback=trace))
    kept = await _all(letters)
    await broker.close()
    server.stop()

    assert [each.message.data for each in kept] == [each.data for each in cases.values()]
    assert [each.message.subject for each in kept] == [each.subject for each in cases.values()]
    assert kept[1].message.headers.items() >= {"Own-11": "v" * 90}.items()
    assert broker.reconnects == 0


async def test_an_impossible_function_in_a_dead_letter_has_no_mailbox(
    broker: Broker, letters: DeadLetters
) -> None:
    headers = {
        "Runtime-Stream": "JOBS", "Runtime-Sequence": "1", "Runtime-Function": "a b > c",
    }  # fmt: skip
    await broker.publish("dead_letters.forged", b"x", headers=headers)

    with pytest.raises(ConfigError, match="no mailbox"):
        await letters.redrive()
