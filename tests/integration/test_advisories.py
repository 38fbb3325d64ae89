import asyncio
import json
from typing import Any

import pytest

from runtime.broker.advisories import Sweeper, parse_advisory
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.broker.mailbox import Mailbox
from runtime.broker.stream_configs import FUNCTION_METADATA
from runtime.broker.streams import ensure
from runtime.manifest.model import Manifest
from runtime.message import Message
from tests.support.deliveries import pull, pull_nothing

ONCE = {"retry": {"attempts": 1}}


@pytest.fixture(autouse=True)
async def clean_server(broker: Broker) -> None:
    for stream in (await broker.api("STREAM.NAMES")).get("streams") or []:
        await broker.api(f"STREAM.DELETE.{stream}")


@pytest.fixture
def letters(broker: Broker) -> DeadLetters:
    return DeadLetters(broker)


@pytest.fixture
def sweeper(broker: Broker, letters: DeadLetters) -> Sweeper:
    return Sweeper(broker, letters, {("JOBS", "work"): "work", ("MAILBOX", "work"): "work"})


async def _ensure(broker: Broker, retention: str = "limits", **fields: Any) -> None:
    functions = {
        name: {
            "handler": "some.module:handle",
            "consumer": {"stream": "JOBS", "ack_wait": "1s", **fields},
            **ONCE,
        }
        for name in (("work", "other") if retention == "interest" else ("work",))
    }
    streams = {"JOBS": {"subjects": ["jobs.>"], "retention": retention}}
    await ensure(broker, Manifest.model_validate({"streams": streams, "functions": functions}))


async def _exhaust(broker: Broker, stream: str = "JOBS", durable: str = "work") -> Message:
    """Deliver for the last time without a settlement, as if the process had died."""
    [message] = await pull(broker, stream, durable)
    await pull_nothing(broker, stream, durable)
    return message


async def _all(letters: DeadLetters) -> list[DeadLetter]:
    return [letter async for letter in letters.list()]


async def _count(broker: Broker, stream: str) -> int:
    return int((await broker.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


async def test_a_message_that_kills_its_process_becomes_a_dead_letter(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker)
    await broker.publish("jobs.a", b"deadly", headers={"A": "b", "Nats-Msg-Id": "mine"})
    message = await _exhaust(broker)

    assert await sweeper.run_once(1.0) == 1

    [letter] = await _all(letters)
    assert (letter.function, letter.code, letter.attempts) == ("work", "MAX_DELIVERIES", 1)
    assert letter.message.data == b"deadly"
    assert letter.message.headers == {"A": "b", "Nats-Msg-Id": "mine"}
    assert letter.message.stored_at_ns == message.stored_at_ns
    assert letter.message.subject == "jobs.a"
    assert await _count(broker, "JOBS") == 1
    assert await _count(broker, "ADVISORIES") == 0


async def test_the_original_leaves_a_work_queue_once_its_copy_is_stored(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker, "workqueue")
    await broker.publish("jobs.a", b"deadly")
    await _exhaust(broker)

    await sweeper.run_once(1.0)

    assert len(await _all(letters)) == 1
    assert await _count(broker, "JOBS") == 0


async def test_the_original_stays_in_an_interest_stream_while_another_consumer_wants_it(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker, "interest")
    await broker.publish("jobs.a", b"deadly")
    await _exhaust(broker)

    await sweeper.run_once(1.0)

    assert len(await _all(letters)) == 1
    [for_the_other] = await pull(broker, "JOBS", "other")
    assert for_the_other.data == b"deadly"


async def test_a_mailbox_message_keeps_its_identity_into_the_dead_letters(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker)
    await broker.publish("jobs.a", b"deadly", headers={"A": "b"})
    [message] = await pull(broker, "JOBS", "work")
    await broker.send(message.reply, b"+ACK")
    await Mailbox(broker).post(message, "work")
    await _exhaust(broker, "MAILBOX", "work")

    assert await sweeper.run_once(1.0) == 1

    [letter] = await _all(letters)
    assert (letter.message.stream, letter.message.sequence) == ("JOBS", message.sequence)
    assert letter.message.headers == {"A": "b"}
    assert await _count(broker, "MAILBOX") == 0


async def test_a_host_that_does_not_run_the_function_sweeps_for_it(
    broker: Broker, letters: DeadLetters
) -> None:
    await _ensure(broker)
    await broker.publish("jobs.a", b"deadly")
    await _exhaust(broker)

    assert await Sweeper(broker, letters, {}).run_once(1.0) == 1

    assert [letter.function for letter in await _all(letters)] == ["work"]


async def test_another_applications_consumer_is_left_alone(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker)
    config = {
        "name": "theirs", "durable_name": "theirs", "ack_policy": "explicit",
        "deliver_policy": "all", "ack_wait": 10**9, "max_deliver": 1,
    }  # fmt: skip
    payload = {"stream_name": "JOBS", "config": config, "action": "create"}
    await broker.api("CONSUMER.CREATE.JOBS.theirs", payload)
    await broker.publish("jobs.a", b"x")
    await _exhaust(broker, "JOBS", "theirs")

    assert await sweeper.run_once(1.0) == 1

    assert await _all(letters) == []
    assert await _count(broker, "ADVISORIES") == 0


async def test_an_advisory_stays_until_its_dead_letter_is_stored(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker, "workqueue")
    await broker.publish("jobs.a", b"deadly")
    await _exhaust(broker)
    await broker.api("STREAM.DELETE.DEAD_LETTERS")

    assert await sweeper.run_once(1.0) == 0

    assert await _count(broker, "ADVISORIES") == 1
    assert await _count(broker, "JOBS") == 1
    await letters.ensure()
    [advisory] = await _kept_advisories(broker)
    assert await sweeper.handle(advisory)
    assert len(await _all(letters)) == 1


async def test_a_message_that_was_given_up_properly_makes_no_second_dead_letter(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker)
    await broker.publish("jobs.a", b"bad")
    [message] = await pull(broker, "JOBS", "work")
    await letters.store(DeadLetter("work", message, "BAD"))
    await pull_nothing(
        broker, "JOBS", "work"
    )  # As if the host had died between the copy and the TERM.

    assert await sweeper.run_once(1.0) == 1

    assert [letter.code for letter in await _all(letters)] == ["BAD"]


async def test_an_advisory_whose_message_is_gone_is_settled(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker)
    await broker.publish("jobs.a", b"deadly")
    await _exhaust(broker)
    await broker.api("STREAM.PURGE.JOBS")

    assert await sweeper.run_once(1.0) == 1

    assert await _all(letters) == []
    assert await _count(broker, "ADVISORIES") == 0


async def test_several_hosts_share_the_sweeping(broker: Broker, letters: DeadLetters) -> None:
    await _ensure(broker)
    for number in range(30):
        await broker.publish("jobs.a", str(number).encode())
    assert len(await pull(broker, "JOBS", "work", 30)) == 30
    await pull_nothing(broker, "JOBS", "work")

    settled = await asyncio.gather(*(Sweeper(broker, letters, {}).run_once(1.5) for _ in range(3)))

    assert sum(settled) == 30
    assert sorted(int(each.message.data) for each in await _all(letters)) == list(range(30))


async def test_an_advisory_that_cannot_be_read_does_not_stop_the_others(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper
) -> None:
    await _ensure(broker)
    await broker.publish("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.JOBS.x", b"not JSON")
    await broker.publish("jobs.a", b"deadly")
    await _exhaust(broker)

    assert await sweeper.run_once(1.0) == 2

    assert len(await _all(letters)) == 1


EVIL = "x\r\nPUB evil 4\r\nevil\r\n"


@pytest.mark.parametrize(
    "forged",
    [
        {"stream": "JOBS", "consumer": EVIL},
        {"stream": EVIL, "consumer": "work"},
        {"stream": "*", "consumer": "work"},
        {"stream": "JOBS", "consumer": ">"},
        {"stream": "JOBS.more", "consumer": "work"},
        {"stream": "JOBS", "consumer": ""},
        {"stream": "JOBS", "consumer": "work", "stream_seq": 0},
    ],
)
async def test_a_forged_name_in_an_advisory_reaches_no_subject(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper, forged: dict[str, Any]
) -> None:
    await _ensure(broker)
    reconnects = broker.reconnects
    heard: list[Message] = []
    subscription = await broker.subscribe("evil", heard.append)
    advisory = {"stream_seq": 1, "deliveries": 1} | forged
    subject = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.JOBS.x"
    await broker.publish(subject, json.dumps(advisory).encode())

    assert await sweeper.run_once(1.0) == 1

    await broker.flush()
    assert (heard, broker.reconnects) == ([], reconnects)
    assert await _all(letters) == []
    assert await _count(broker, "ADVISORIES") == 0
    await subscription.unsubscribe()


@pytest.mark.parametrize("owner", [EVIL, "a b", "a.b", ">", ""])
async def test_a_consumer_that_claims_an_impossible_function_is_left_alone(
    broker: Broker, letters: DeadLetters, sweeper: Sweeper, owner: str
) -> None:
    await _ensure(broker)
    config = {
        "name": "theirs", "durable_name": "theirs", "ack_policy": "explicit",
        "deliver_policy": "all", "ack_wait": 10**9, "max_deliver": 1,
        "metadata": {FUNCTION_METADATA: owner},
    }  # fmt: skip
    payload = {"stream_name": "JOBS", "config": config, "action": "create"}
    await broker.api("CONSUMER.CREATE.JOBS.theirs", payload)
    await broker.publish("jobs.a", b"x")
    await _exhaust(broker, "JOBS", "theirs")

    assert await sweeper.run_once(1.0) == 1

    assert await _all(letters) == []
    assert await _count(broker, "ADVISORIES") == 0


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", json.dumps({"stream": 1}).encode()])
def test_a_message_that_is_not_an_advisory_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_advisory(data)


async def _kept_advisories(broker: Broker) -> list[Message]:
    """The advisory as the server stores it; a reply to this copy settles nothing."""
    answer = await broker.request(
        "$JS.API.DIRECT.GET.ADVISORIES.$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.JOBS.work", b""
    )
    return [Message("", answer.data, reply="nobody.listens")]
