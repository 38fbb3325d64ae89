"""Arbitrary bytes from a client of the same server fail one message and no other."""

import asyncio
import random
from typing import Any

import pytest
import structlog

from runtime import Batch, Context, Event, NoAnswer, RequestFailed
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.message import Message
from tests.support.host import (
    Journal,
    eventually,
    fresh,
    running_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.support.raw_client import RawClient
from tests.support.servers import NatsServer

ROUNDS = 4000
STORED = 1000
SPACES = b" \t\r\n"
SUBJECT = b"\xff\xfe.\x0b1.\xc3\x28"
BLOCKS = [
    b"\x00",
    b"N",
    b"\xff" * 40,
    b"NATS/1.0\r\nno colon \xff\r\n\r\n",
    b"HTTP/1.1\r\nA: b\r\n\r\n",
]


def _any_subject(chance: random.Random) -> bytes:
    tokens = [
        chance.randbytes(chance.randint(1, 12)).translate(None, SPACES + b".") or b"x"
        for _ in range(chance.randint(1, 4))
    ]
    return b".".join(tokens)


def _any_block(chance: random.Random) -> bytes:
    noise = chance.randbytes(chance.randint(1, 60))
    return chance.choice(
        [b"", noise[:1], noise, b"NATS/1.0" + noise, b"NATS/1.0\r\n" + noise + b"\r\n\r\n",
         b"NATS/1.0 " + noise + b"\r\n\r\n", b"NATS/1.0\r\nA: " + noise + b"\r\n\r\n"]
    )  # fmt: skip


async def test_thousands_of_frames_of_any_bytes_keep_no_good_message_from_being_served(
    nats_server: NatsServer, broker: Broker
) -> None:
    chance = random.Random(20261128)  # noqa: S311 - the same ones each time
    reconnects = broker.reconnects
    good: list[int] = []
    others = 0
    done = asyncio.Event()

    def take(message: Message) -> None:
        nonlocal others
        if message.headers.get("Good") == "yes" and message.unreadable is None:
            good.append(int(message.data))
        else:
            others += 1
        if len(good) == ROUNDS:
            done.set()

    async def answer(message: Message) -> None:
        await broker.respond(message, message.data)

    everything = await broker.subscribe("fuzz.>", take)
    asked = await broker.subscribe("ask.>", answer)
    await broker.flush()
    async with RawClient(nats_server) as raw:
        for number in range(ROUNDS):
            subject, block = _any_subject(chance), _any_block(chance)
            raw.publish(b"fuzz." + subject, chance.randbytes(20), block=block)
            raw.publish(b"ask." + subject, b"?", block=block, reply=_any_subject(chance))
            raw.publish(b"fuzz.good", b"%d" % number, block=b"NATS/1.0\r\nGood: yes\r\n\r\n")
            if not number % 100:
                await raw.flush()
                assert (await broker.request("ask.well", b"!")).data == b"!"
        await raw.flush()
        async with asyncio.timeout(60):
            await done.wait()

    assert good == list(range(ROUNDS))
    assert others > ROUNDS * 0.9  # Subjects with a wildcard go elsewhere.
    assert broker.reconnects == reconnects
    for each in (everything, asked):
        await each.unsubscribe()


async def _letters(broker: Broker, function: str, count: int) -> list[DeadLetter]:
    letters = await wait_for_letters(broker, function, count)
    assert len(letters) == count
    return letters


@pytest.mark.parametrize("kind", ["on_event", "on_batch", "ordered", "fair"])
async def test_a_message_of_strange_bytes_is_a_dead_letter_and_its_neighbours_are_served(
    nats_server: NatsServer, broker: Broker, kind: str
) -> None:
    stream, name = fresh("STRANGE"), fresh(kind)
    journal = Journal()

    async def take(ctx: Context, given: Event[bytes] | Batch[bytes]) -> None:
        for event in given if isinstance(given, Batch) else [given]:
            journal.add(event.data)

    spec: dict[str, Any] = {
        "handler": kind if kind.startswith("on_") else "on_event",
        "consumer": {"stream": stream},
        "retry": {"attempts": 5, "delay": "10s"},
    }
    if kind == "ordered":
        spec["ordered_by"] = {"token": 2}
    if kind == "fair":
        spec["fair_by"] = {"token": 2}
    subject = stream.lower()
    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url,
            {name: spec},
            {name: take},
            streams={stream: {"subjects": [f"{subject}.>"]}},
        ) as host:
            async with RawClient(nats_server) as raw:
                for number, block in enumerate(BLOCKS):
                    raw.publish(b"%b.bad" % subject.encode(), b"payload", block=block)
                    raw.publish(b"%b.bad" % subject.encode(), b"good %d" % number)
                raw.publish(b"%b.%b" % (subject.encode(), SUBJECT), b"{}")
                raw.publish(b"%b.bad" % subject.encode(), b"last")
                await raw.flush()
            letters = await _letters(broker, name, len(BLOCKS) + 1)
            seen = await journal.wait(len(BLOCKS) + 1)
            assert host._broker is not None
            assert host._broker.reconnects == 0

    assert sorted(seen) == sorted([b"last", *(b"good %d" % n for n in range(len(BLOCKS)))])
    assert {letter.code for letter in letters} == {"MESSAGE_UNREADABLE"}
    assert {letter.attempts for letter in letters} == {1}
    *blocks, last = sorted(letters, key=lambda letter: letter.message.sequence)
    for letter, block in zip(blocks, BLOCKS, strict=True):
        assert letter.message.unreadable is not None
        assert letter.message.unreadable.header_block == block
        assert letter.message.data == b"payload"
        assert letter.reason.startswith(("its headers", "a line of its headers"))
    assert last.message.subject.encode("utf-8", "surrogateescape").endswith(SUBJECT)
    assert (last.message.data, last.reason) == (b"{}", "its subject is not UTF-8")


async def test_of_thousands_of_stored_frames_each_is_served_or_a_dead_letter(
    nats_server: NatsServer, broker: Broker
) -> None:
    chance = random.Random(7)  # noqa: S311 - the same ones each time
    stream, name = fresh("STORED"), fresh("stored")
    subject = stream.lower().encode()
    journal = Journal()

    async def take(ctx: Context, event: Event[bytes]) -> None:
        journal.add(event.sequence)

    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url,
            {name: {"handler": "on_event", "consumer": {"stream": stream}}},
            {name: take},
            streams={stream: {"subjects": [f"{stream.lower()}.>"]}},
        ) as host:
            async with RawClient(nats_server) as raw:
                for number in range(STORED):
                    raw.publish(
                        b"%b.%b" % (subject, _any_subject(chance)), b"x", block=_any_block(chance)
                    )
                    raw.publish(b"%b.good" % subject, b"%d" % number)
                await raw.flush()
            await wait_until_settled(broker, stream, name)
            letters = await wait_for_letters(broker, name)
            state = (await broker.api(f"STREAM.INFO.{stream}"))["state"]
            assert host._broker is not None
            assert host._broker.reconnects == 0

    given_up = [letter.message.sequence for letter in letters]
    assert sorted([*journal.entries, *given_up]) == list(range(1, state["last_seq"] + 1))
    assert state["messages"] > 1.8 * STORED  # JetStream refuses some of the headers itself.
    assert len(given_up) > STORED // 2
    assert {letter.code for letter in letters} == {"MESSAGE_UNREADABLE"}


async def test_a_redriven_message_of_strange_bytes_is_the_same_dead_letter_again(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, name = fresh("AGAIN"), fresh("again")
    subject = stream.lower()

    async def take(ctx: Context, event: Event[bytes]) -> None:
        raise AssertionError("it must not be called")

    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url,
            {name: {"handler": "on_event", "consumer": {"stream": stream}}},
            {name: take},
            streams={stream: {"subjects": [f"{subject}.>"]}},
        ):
            async with RawClient(nats_server) as raw:
                raw.publish(b"%b.\xff" % subject.encode(), b"x", block=BLOCKS[2])
                await raw.flush()
            [first] = await _letters(broker, name, 1)
            await DeadLetters(broker).redrive(sequences=[first.sequence])

            async def again() -> DeadLetter | None:
                letters = await wait_for_letters(broker, name)
                return letters[0] if letters[0].redrives else None

            second = await eventually(again, "the second dead letter")

    assert second.message.unreadable == first.message.unreadable
    assert (second.message.subject, second.message.data) == (first.message.subject, b"x")
    assert second.reason == first.reason


async def test_a_request_of_strange_bytes_gets_an_error_and_the_next_one_its_answer(
    nats_server: NatsServer, broker: Broker
) -> None:
    name = fresh("ask").replace("_", "-")

    async def answer(ctx: Context, event: Event[bytes]) -> bytes:
        return b"answer"

    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url,
            {name: {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.it"}}},
            {name: answer},
        ) as host:
            inbox: asyncio.Queue[Message] = asyncio.Queue()
            subscription = await broker.subscribe("strange.inbox", inbox.put_nowait)
            await broker.flush()
            async with RawClient(nats_server) as raw:
                for block in BLOCKS:
                    for subject in (
                        name.encode() + b".it",
                        b"$SRV.PING",
                        b"$SRV.INFO",
                        b"$SRV.STATS",
                    ):
                        raw.publish(subject, b"", block=block, reply=b"strange.inbox")
                raw.publish(name.encode() + b".it", b"", reply=b"strange.\xff.inbox")
                raw.publish(name.encode() + b".it", b"", block=BLOCKS[0])
                await raw.flush()
            assert (await broker.request(f"{name}.it", b"")).data == b"answer"
            codes: list[str] = []
            while len(codes) < len(BLOCKS):
                told = await asyncio.wait_for(inbox.get(), 20)
                if "Nats-Service-Error-Code" in told.headers:
                    codes.append(told.headers["Nats-Service-Error-Code"])
            assert set(codes) == {"400"}
            assert host._broker is not None
            assert host._broker.reconnects == 0
            await subscription.unsubscribe()


async def test_an_answer_of_strange_bytes_is_no_answer(
    nats_server: NatsServer, broker: Broker
) -> None:
    async with RawClient(nats_server) as raw:

        def answer(message: Message) -> None:
            raw.publish(message.reply.encode(), b"x", block=b"\x00")

        subscription = await broker.subscribe("odd.answers", answer)
        with pytest.raises(NoAnswer, match="cannot be read"):
            await broker.request("odd.answers", b"")
        await subscription.unsubscribe()


async def test_bytes_in_a_header_that_are_no_text_reach_the_function_and_the_dead_letter(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, name = fresh("LATIN"), fresh("latin")
    subject = stream.lower()
    journal = Journal()

    async def take(ctx: Context, event: Event[bytes]) -> None:
        journal.add(event.headers["Name"])
        raise RequestFailed("a", 500, "so that there is a dead letter")

    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url,
            {
                name: {
                    "handler": "on_event",
                    "consumer": {"stream": stream},
                    "retry": {"attempts": 1},
                }
            },
            {name: take},
            streams={stream: {"subjects": [f"{subject}.>"]}},
        ):
            async with RawClient(nats_server) as raw:
                block = b"NATS/1.0\r\nName: J\xf6rg\r\n\r\n"
                raw.publish(b"%b.a" % subject.encode(), b"", block=block)
                await raw.flush()
            [letter] = await _letters(broker, name, 1)

    assert journal.entries == ["J\udcf6rg"]
    assert letter.message.headers["Name"].encode("utf-8", "surrogateescape") == b"J\xf6rg"


async def test_a_standby_that_nobody_can_ask_takes_no_call_of_an_ordered_function(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, name = fresh("FORGED"), fresh("forged")
    journal = Journal()
    forged = [
        b"", b"[]", b"{}", b"\xff", b'{"id": null, "slots": "x"}',
        b'{"id": "a b\\r\\nPUB x 0", "slots": 5}', b'{"id": "a.>", "slots": 5}',
        b'{"id": "", "slots": 5}', b'{"id": "a", "slots": -1}',
    ]  # fmt: skip

    async def take(ctx: Context, event: Event[bytes]) -> None:
        journal.add((event.data, ctx.attempt))

    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream},
        "ordered_by": {"token": 2},
        "concurrency": 1,
    }
    with structlog.testing.capture_logs() as lines:
        async with running_host(
            nats_server.url,
            {name: spec},
            {name: take},
            streams={stream: {"subjects": [f"{stream.lower()}.>"]}},
        ) as host:
            await broker.publish(f"{stream.lower()}.first", b"first")
            await journal.wait(1)
            for data in forged:
                await broker.publish_core(f"_RUNTIME.{name}.standbys", data)
            for number in range(50):
                await broker.publish(f"{stream.lower()}.k{number}", b"%d" % number)
            seen = await journal.wait(51)
            assert host._broker is not None
            assert host._broker.reconnects == 0

    assert {attempt for _, attempt in seen} == {1}
    assert len({data for data, _ in seen}) == 51
    assert [line for line in lines if line["log_level"] == "error"] == []
