"""Batch functions: when a batch is called, and how each of its messages is settled."""

import asyncio
from typing import Any

import pytest

from runtime import Context, Reject, Retry
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters
from runtime.context import Publication
from tests.support.host import (
    QUICK,
    Journal,
    consumer,
    eventually,
    fresh,
    letters_of,
    running_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.support.servers import NatsServer


class BatchedStream:
    """A stream and a batch function over it."""

    def __init__(self, broker: Broker, url: str) -> None:
        self.broker = broker
        self.url = url
        self.stream = fresh("LINE")
        self.name = fresh("batch")

    def run(self, act: Any, *, handler: str = "on_batch", **spec: Any) -> Any:
        stated = {
            "handler": handler,
            "consumer": {"stream": self.stream},
            "retry": QUICK,
            "concurrency": 1,
            **spec,
        }
        streams = {self.stream: {"subjects": [f"{self.stream}.>"]}}
        return running_host(self.url, {self.name: stated}, {self.name: act}, streams=streams)

    async def give(self, *payloads: bytes) -> None:
        await self.broker.publish_many(
            [
                Publication(f"{self.stream}.a", data, f"{self.name}-{fresh('id')}")
                for data in payloads
            ]
        )

    async def settle(self) -> None:
        await wait_until_settled(self.broker, self.stream, self.name)


@pytest.fixture
def batched(broker: Broker, nats_server: NatsServer) -> BatchedStream:
    return BatchedStream(broker, nats_server.url)


def _numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def test_a_batch_is_handed_over_when_it_is_full_whatever_the_window(
    batched: BatchedStream,
) -> None:
    journal = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        journal.add([event.raw for event in batch])

    async with batched.run(act, batch={"size": 10, "wait": "60s"}):
        await batched.give(*_numbers(30))
        batches = await journal.wait(3)
        await batched.settle()

    assert batches == [_numbers(30)[start : start + 10] for start in (0, 10, 20)]


async def test_a_batch_is_handed_over_when_its_window_ends_however_small(
    batched: BatchedStream,
) -> None:
    journal = Journal()
    time = asyncio.get_running_loop().time

    async def act(ctx: Context, batch: Any) -> None:
        journal.add((len(batch), time() - batch[0].message.received_at_s))

    async with batched.run(act, batch={"size": 500, "wait": "400ms"}):
        await batched.give(*_numbers(3))
        [(count, waited_s)] = await journal.wait(1)

    assert count == 3
    assert 0.39 <= waited_s < 30


async def test_a_batch_is_handed_over_when_it_is_large_enough_and_never_larger(
    batched: BatchedStream,
) -> None:
    journal = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        journal.add([len(event.raw) for event in batch])

    async with batched.run(act, batch={"size": 500, "bytes": 1000, "wait": "60s"}):
        await batched.give(*[b"x" * 300] * 8, b"y" * 5000, *[b"x" * 300] * 4)
        await journal.wait(4)
        shown = list(journal.entries)

    assert all(sum(sizes) <= 1000 or len(sizes) == 1 for sizes in shown)
    assert shown[:2] == [[300, 300, 300], [300, 300, 300]]
    assert [5000] in shown


async def test_size_bytes_and_window_each_end_a_batch_when_reached_first(
    batched: BatchedStream,
) -> None:
    journal = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        journal.add([len(event.raw) for event in batch])

    async with batched.run(act, batch={"size": 4, "bytes": 1000, "wait": "500ms"}):
        await batched.give(*[b"x" * 10] * 4)
        await journal.wait(1)
        await batched.give(*[b"x" * 500] * 2)
        await journal.wait(2)
        await batched.give(*[b"x" * 10] * 3)
        await journal.wait(3)
        await batched.settle()

    assert journal.entries == [[10] * 4, [500] * 2, [10] * 3]


async def test_messages_that_keep_coming_do_not_make_a_window_longer(
    batched: BatchedStream,
) -> None:
    journal, enough = Journal(), asyncio.Event()
    time = asyncio.get_running_loop().time

    async def act(ctx: Context, batch: Any) -> None:
        journal.add((len(batch), time() - batch[0].message.received_at_s))

    async def trickle() -> None:
        while not enough.is_set():
            await batched.give(b"x")

    async with batched.run(act, batch={"size": 10_000, "wait": "300ms"}, max_in_flight=20_000):
        trickling = asyncio.create_task(trickle())
        batches = list(await journal.wait(3))
        enough.set()
        await trickling
        await batched.settle()

    assert all(count < 10_000 for count, _ in batches)
    assert all(waited_s >= 0.29 for _, waited_s in batches)


async def test_a_batch_that_is_late_does_not_hold_the_next_ones_back(
    batched: BatchedStream,
) -> None:
    calls, late = Journal(), asyncio.Event()

    async def act(ctx: Context, batch: Any) -> None:
        raws = [event.raw for event in batch]
        if b"late" in raws:
            await late.wait()
        calls.add(raws)

    async with batched.run(act, concurrency=2, batch={"size": 2, "wait": "10s"}):
        await batched.give(b"late", b"0")
        await batched.give(*_numbers(20))
        meanwhile = list(await calls.wait(10))
        late.set()
        await calls.wait(11)
        await batched.settle()

    assert meanwhile == [[b"%d" % n, b"%d" % (n + 1)] for n in range(0, 20, 2)]
    assert calls.entries[-1] == [b"late", b"0"]


@pytest.mark.parametrize("place", [0, 7, 15])
async def test_a_poison_message_is_found_and_the_others_commit(
    batched: BatchedStream, place: int
) -> None:
    committed, payloads = Journal(), _numbers(16)
    payloads[place] = b"poison"

    async def act(ctx: Context, batch: Any) -> None:
        if any(event.raw == b"poison" for event in batch):
            raise ValueError("poison")
        for event in batch:
            committed.add(event.raw)

    async with batched.run(act, batch={"size": 16, "wait": "10s"}, retry={**QUICK, "attempts": 1}):
        await batched.give(*payloads)
        [letter] = await wait_for_letters(batched.broker, batched.name)
        await batched.settle()

    assert letter.message.data == b"poison"
    assert letter.code == "ATTEMPTS_EXHAUSTED"
    assert sorted(committed.entries) == sorted(set(payloads) - {b"poison"})


async def test_several_poison_messages_are_dead_letters_and_no_good_one_is(
    batched: BatchedStream,
) -> None:
    committed = Journal()
    payloads = [b"poison-%d" % n if n % 9 == 0 else b"%d" % n for n in range(40)]

    async def act(ctx: Context, batch: Any) -> None:
        if any(event.raw.startswith(b"poison") for event in batch):
            raise ValueError("poison")
        for event in batch:
            committed.add(event.raw)

    spec: dict[str, Any] = {
        "batch": {"size": 40, "wait": "300ms"},
        "retry": {**QUICK, "attempts": 2},
    }
    async with batched.run(act, **spec):
        await batched.give(*payloads)
        letters = await wait_for_letters(batched.broker, batched.name, 5)
        await batched.settle()

    poison = {data for data in payloads if data.startswith(b"poison")}
    assert {letter.message.data for letter in letters} == poison
    assert sorted(committed.entries) == sorted(set(payloads) - poison)


async def test_each_message_of_a_batch_may_be_rejected_or_tried_again_alone(
    batched: BatchedStream,
) -> None:
    calls = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        calls.add([(event.raw, event.attempt) for event in batch])
        for event in batch:
            if event.raw == b"1":
                batch.reject(event, "BAD_ONE", "number one")
            if event.raw == b"2" and event.attempt == 1:
                batch.retry(event, "not yet", delay_s=0.1)

    async with batched.run(act, batch={"size": 4, "wait": "100ms"}):
        await batched.give(*_numbers(4))
        await calls.wait(2)
        [letter] = await wait_for_letters(batched.broker, batched.name)
        await batched.settle()

    assert calls.entries == [[(b"%d" % n, 1) for n in range(4)], [(b"2", 2)]]
    assert (letter.message.data, letter.code, letter.reason) == (b"1", "BAD_ONE", "number one")


async def test_what_does_not_fit_is_a_dead_letter_and_the_rest_of_the_batch_goes_on(
    batched: BatchedStream,
) -> None:
    calls = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        calls.add([event.data.number for event in batch])

    async with batched.run(act, handler="on_orders", batch={"size": 3, "wait": "10s"}):
        await batched.give(b'{"number": 1}', b"broken", b'{"number": 3}')
        await calls.wait(1)
        [letter] = await wait_for_letters(batched.broker, batched.name)
        await batched.settle()

    assert calls.entries == [[1, 3]]
    assert (letter.message.data, letter.code) == (b"broken", "PAYLOAD_INVALID")


@pytest.mark.parametrize("failure", [Retry("away"), Reject("BAD", "all of it")])
async def test_steering_of_a_whole_batch_splits_nothing_or_only_what_it_must(
    batched: BatchedStream, failure: Exception
) -> None:
    calls = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        calls.add(len(batch))
        if ctx.attempt == 1:
            raise failure

    async with batched.run(act, batch={"size": 8, "wait": "300ms"}):
        await batched.give(*_numbers(8))
        await calls.wait(2)
        await batched.settle()
        letters = await letters_of(batched.broker, batched.name)

    if isinstance(failure, Retry):
        assert calls.entries[0] == 8
        assert sum(calls.entries) == 16
        assert not letters
    else:
        assert len(letters) == 8


async def test_a_message_that_waits_for_its_dead_letter_does_not_hold_back_the_next_batch(
    batched: BatchedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, slow = Journal(), asyncio.Event()
    store = DeadLetters.store

    async def store_slowly(self: DeadLetters, letter: Any) -> Any:
        await slow.wait()
        return await store(self, letter)

    monkeypatch.setattr(DeadLetters, "store", store_slowly)

    async def act(ctx: Context, batch: Any) -> None:
        calls.add([event.raw for event in batch])
        for event in batch:
            if event.raw == b"bad":
                batch.reject(event, "BAD")

    async with batched.run(act, batch={"size": 2, "wait": "50ms"}):
        await batched.give(b"bad", b"1")
        await calls.wait(1)
        await batched.give(b"2", b"3")
        await calls.wait(2)
        slow.set()
        await batched.settle()

    assert calls.entries == [[b"bad", b"1"], [b"2", b"3"]]


async def test_a_drain_does_not_wait_for_the_window_of_a_batch(batched: BatchedStream) -> None:
    calls = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        calls.add(len(batch))

    async with batched.run(act, batch={"size": 500, "wait": "60s"}) as host:
        await batched.give(*_numbers(3))

        async def fetched() -> bool:
            found = await consumer(batched.broker, batched.stream, batched.name)
            return bool(found["num_ack_pending"] == 3)

        await eventually(fetched, "three messages")
        began_s = asyncio.get_running_loop().time()
        await host.drain(30)
        took_s = asyncio.get_running_loop().time() - began_s
    found = await consumer(batched.broker, batched.stream, batched.name)

    assert calls.entries == [3]
    assert took_s < 20
    assert (found["num_ack_pending"], found["num_redelivered"]) == (0, 0)


async def test_two_batches_run_side_by_side_and_no_more_is_held_than_they_need(
    batched: BatchedStream,
) -> None:
    calls, release = Journal(), asyncio.Event()

    async def act(ctx: Context, batch: Any) -> None:
        calls.add(len(batch))
        await release.wait()

    async with batched.run(act, concurrency=2, batch={"size": 5, "wait": "10s"}):
        await batched.give(*_numbers(100))
        await calls.wait(2)

        async def fetched() -> bool:
            found = await consumer(batched.broker, batched.stream, batched.name)
            return bool(found["num_ack_pending"] == 15)

        await eventually(fetched, "one batch ahead of the two that run")
        running = list(calls.entries)
        release.set()
        await calls.wait(20)
        await batched.settle()

    assert running == [5, 5]
    assert sum(calls.entries) == 100
