"""Ordered functions: one message of a key at a time, in order, on whichever host."""

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from runtime import Context, Reject, Retry
from runtime.broker.connection import Broker
from runtime.context import Publication
from runtime.host import Host
from tests.support.host import (
    Journal,
    eventually,
    fresh,
    letters_of,
    running_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.support.servers import NatsServer

RETRY = {"attempts": 4, "delay": "50ms", "factor": 1, "jitter": 0}
KEYS = [f"key{n}" for n in range(8)]


class OrderedStream:
    """A stream with keys in its subjects, and an ordered function on it."""

    def __init__(self, broker: Broker, url: str) -> None:
        self.broker = broker
        self.url = url
        self.stream = fresh("BELT")
        self.name = fresh("ordered")
        self.given: dict[str, list[int]] = defaultdict(list)
        self._number = 0

    def run(self, act: Any, *, handler: str = "on_event", **spec: Any) -> Any:
        stated = {
            "handler": handler,
            "consumer": {"stream": self.stream, "ack_wait": "5s"},
            "retry": RETRY,
            "ordered_by": {"token": 2},
            **spec,
        }
        streams = {self.stream: {"subjects": [f"{self.stream}.>"]}}
        return running_host(self.url, {self.name: stated}, {self.name: act}, streams=streams)

    async def give(self, *keys: str, data: bytes | None = None) -> None:
        """Publish one message for each key named, with consecutive numbers."""
        publications = []
        for key in keys:
            self._number += 1
            self.given[key].append(self._number)
            payload = b"%d" % self._number if data is None else data
            publications.append(
                Publication(f"{self.stream}.{key}", payload, f"{self.name}-{self._number}")
            )
        await self.broker.publish_many(publications)

    async def settle(self) -> None:
        await wait_until_settled(self.broker, self.stream, self.name)


@pytest.fixture
def ordered(broker: Broker, nats_server: NatsServer) -> OrderedStream:
    return OrderedStream(broker, nats_server.url)


class Watched:
    """Records the order of calls by key, and whether two calls of one key overlapped."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.done: dict[str, list[int]] = defaultdict(list)
        self.overlaps = 0
        self.most = 0
        self._out: set[str] = set()

    async def work(self, event: Any, seconds: float = 0.002) -> None:
        key = event.subject.rsplit(".", 1)[1]
        self.overlaps += key in self._out
        self._out.add(key)
        self.most = max(self.most, len(self._out))
        try:
            await asyncio.sleep(seconds)
        finally:
            self._out.discard(key)
        self.done[key].append(int(event.raw))
        self.journal.add((key, int(event.raw)))


async def test_of_each_key_one_message_runs_at_a_time_in_order_and_keys_run_beside_each_other(
    ordered: OrderedStream,
) -> None:
    watched = Watched()

    async def act(ctx: Context, event: Any) -> None:
        await watched.work(event)

    async with ordered.run(act), ordered.run(act):
        for _ in range(40):
            await ordered.give(*KEYS)
        await watched.journal.wait(40 * len(KEYS))
        await ordered.settle()

    assert watched.done == ordered.given
    assert watched.overlaps == 0
    assert watched.most > 1


async def test_messages_of_a_key_wait_for_one_that_fails_and_other_keys_do_not(
    ordered: OrderedStream,
) -> None:
    watched = Watched()
    failures = Journal()

    async def act(ctx: Context, event: Any) -> None:
        if event.subject.endswith("key0") and int(event.raw) == 1 and ctx.attempt < 3:
            failures.add(ctx.attempt)
            raise Retry("not yet", delay_s=0.3)
        await watched.work(event, 0)

    async with ordered.run(act):
        await ordered.give("key0", "key0", "key1", "key0", "key1")
        await watched.journal.wait(5)
        await ordered.settle()

    assert failures.entries == [1, 2]
    assert watched.done == ordered.given
    assert [key for key, _ in watched.journal.entries] == ["key1"] * 2 + ["key0"] * 3


async def test_a_long_wait_keeps_the_order_too(ordered: OrderedStream) -> None:
    """The message is not parked, since then the messages behind it would overtake it."""
    watched = Watched()
    waiting = asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        if event.raw == b"1" and ctx.attempt == 1:
            waiting.set()
            raise Retry("in an hour", delay_s=3600)
        await watched.work(event, 0)

    async with ordered.run(act):
        await ordered.give("key0", "key0", "key1")
        await waiting.wait()
        assert await watched.journal.wait(1) == [("key1", 3)]
    async with ordered.run(act):
        await ordered.give("key0", "key1")
        await watched.journal.wait(2)
        assert watched.journal.entries == [("key1", 3), ("key1", 5)]


async def test_a_drain_lets_a_call_end_although_another_message_waits_for_its_retry(
    ordered: OrderedStream,
) -> None:
    journal, failed = Journal(), Journal()

    async def act(ctx: Context, event: Any) -> None:
        if event.raw == b"1":
            failed.add(1)
            raise Retry("not yet", delay_s=100)
        journal.add("begun")
        await asyncio.sleep(0.5)
        journal.add("ended")

    async with ordered.run(act) as host:
        await ordered.give("key0")
        await failed.wait(1)
        await ordered.give("key1")
        await journal.wait(1)
        await host.drain(10)

    assert journal.entries == ["begun", "ended"]


async def test_a_successor_waits_for_what_is_left_of_a_delay(ordered: OrderedStream) -> None:
    watched, failed = Watched(), Journal()
    time = asyncio.get_running_loop().time
    failed_at_s: dict[str, float] = {}
    called_at_s: dict[str, float] = {}
    delays_s = {"key0": 4.0, "key1": 1.0}

    async def act(ctx: Context, event: Any) -> None:
        key = event.subject.rsplit(".", 1)[1]
        if int(event.raw) <= len(delays_s) and ctx.attempt == 1:
            failed_at_s[key] = time()
            failed.add(key)
            raise Retry("later", delay_s=delays_s[key])
        called_at_s.setdefault(key, time())
        await watched.work(event, 0)

    async with ordered.run(act):
        await ordered.give(*delays_s)
        await failed.wait(len(delays_s))
        await ordered.give(*delays_s)
    async with ordered.run(act):
        await watched.journal.wait(2 * len(delays_s), 30)
        await ordered.settle()

    assert watched.done == ordered.given
    assert called_at_s["key0"] - failed_at_s["key0"] >= delays_s["key0"] - 0.1


async def test_what_is_given_up_lets_the_next_go_on(ordered: OrderedStream) -> None:
    watched = Watched()

    async def act(ctx: Context, event: Any) -> None:
        if event.raw == b"1":
            raise ValueError("never")
        await watched.work(event, 0)

    async with ordered.run(act):
        await ordered.give("key0", "key0", "key0")
        await watched.journal.wait(2)
        [letter] = await wait_for_letters(ordered.broker, ordered.name)
        await ordered.settle()

    assert (letter.message.data, letter.attempts) == (b"1", 4)
    assert watched.done["key0"] == [2, 3]


async def test_a_key_may_be_a_field_of_the_payload(ordered: OrderedStream) -> None:
    seen = Journal()

    async def act(ctx: Context, event: Any) -> None:
        seen.add(event.raw)
        await asyncio.sleep(0.001)

    payloads = [
        b'{"device": {"id": "%s"}, "n": %d}' % (key, n) for n in range(20) for key in (b"a", b"b")
    ]
    async with ordered.run(act, ordered_by={"field": "device.id"}):
        for payload in payloads:
            await ordered.give("any", data=payload)
        await seen.wait(len(payloads))
        await ordered.settle()

    for device in (b'"a"', b'"b"'):
        wanted = [payload for payload in payloads if device in payload]
        assert [each for each in seen.entries if device in each] == wanted


async def test_batches_hold_one_message_of_each_key(ordered: OrderedStream) -> None:
    batches = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        batches.add([(event.subject.rsplit(".", 1)[1], int(event.raw)) for event in batch])
        await asyncio.sleep(0.002)

    async with ordered.run(act, handler="on_batch", batch={"size": 100, "wait": "20ms"}):
        for _ in range(10):
            await ordered.give(*KEYS)
        await eventually(lambda: _count(batches, 10 * len(KEYS)), "all messages")
        await ordered.settle()

    order = defaultdict(list)
    for batch in batches.entries:
        assert len({key for key, _ in batch}) == len(batch)
        for key, number in batch:
            order[key].append(number)
    assert order == ordered.given
    assert any(len(batch) > 1 for batch in batches.entries)


async def _count(batches: Journal, wanted: int) -> bool:
    return sum(map(len, batches.entries)) >= wanted


async def test_the_next_host_goes_on_where_the_one_before_stopped(ordered: OrderedStream) -> None:
    watched = Watched()

    async def act(ctx: Context, event: Any) -> None:
        assert ctx.attempt == 1
        await watched.work(event)

    async with ordered.run(act):
        for round_ in range(6):
            async with ordered.run(act) if round_ % 2 else _nobody():
                await ordered.give(*KEYS * 10)
                await watched.journal.wait(len(KEYS) * 10 * round_)
        await watched.journal.wait(len(KEYS) * 60)
        await ordered.settle()

    assert watched.done == ordered.given
    assert watched.overlaps == 0
    assert await letters_of(ordered.broker, ordered.name) == []


class _nobody:  # noqa: N801 - stands where a host may stand
    async def __aenter__(self) -> None:
        """Start nothing."""

    async def __aexit__(self, *_: object) -> None:
        """End nothing."""


async def test_a_host_that_stops_while_it_works_hands_over_in_order(ordered: OrderedStream) -> None:
    watched = Watched()
    first: Host

    async def act(ctx: Context, event: Any) -> None:
        await watched.work(event, 0.005)

    async with ordered.run(act) as first:
        await ordered.give(*KEYS * 30)
        await watched.journal.wait(20)
        async with ordered.run(act):
            await first.stop()
            await watched.journal.wait(len(KEYS) * 30)
            await ordered.settle()

    once = {key: list(dict.fromkeys(numbers)) for key, numbers in watched.done.items()}
    assert once == ordered.given
    assert watched.overlaps == 0


async def test_hosts_that_stand_by_make_calls_for_the_one_that_leads(
    ordered: OrderedStream,
) -> None:
    """With one call at a time on each host, three run at a time on three hosts."""
    watched, everybody = Watched(), asyncio.Barrier(3)

    async def act(ctx: Context, event: Any) -> None:
        async with asyncio.timeout(60):
            await everybody.wait()
        await watched.work(event)

    async with (
        ordered.run(act, concurrency=1),
        ordered.run(act, concurrency=1),
        ordered.run(act, concurrency=1),
    ):
        await ordered.give("key0", "key1", "key2")
        await watched.journal.wait(3)
        await ordered.settle()

    assert watched.most == 3
    assert await letters_of(ordered.broker, ordered.name) == []


async def test_a_call_elsewhere_settles_as_one_here_does(ordered: OrderedStream) -> None:
    seen = Journal()

    async def act(ctx: Context, event: Any) -> None:
        seen.add((event.raw, ctx.attempt, event.sequence, event.stream, event.subject))
        if event.raw == b"1" and ctx.attempt == 1:
            raise Retry("again", delay_s=0.1)
        if event.raw == b"2":
            raise Reject("BAD", "never")
        if event.raw == b"3":
            raise ValueError("broken")

    async with ordered.run(act, concurrency=1), ordered.run(act, concurrency=1):
        await ordered.give("key1", "key2", "key3", "key4")
        letters = await wait_for_letters(ordered.broker, ordered.name, 2)
        await ordered.settle()

    found = {letter.message.data: (letter.code, letter.attempts) for letter in letters}
    assert found == {b"2": ("BAD", 1), b"3": ("ATTEMPTS_EXHAUSTED", RETRY["attempts"])}
    assert [entry[:2] for entry in seen.entries if entry[0] == b"1"] == [(b"1", 1), (b"1", 2)]
    assert {entry[2:] for entry in seen.entries} == {
        (number, ordered.stream, f"{ordered.stream}.key{number}") for number in (1, 2, 3, 4)
    }


async def test_calls_elsewhere_end_with_the_leader_that_asked_for_them(
    ordered: OrderedStream,
) -> None:
    gate, watched = asyncio.Event(), Watched()
    began, ended = Journal(), Journal()

    async def act(ctx: Context, event: Any) -> None:
        began.add(event.raw)
        try:
            await gate.wait()
        except asyncio.CancelledError:
            ended.add(event.raw)
            raise
        await watched.work(event)

    async with ordered.run(act, concurrency=1) as first, ordered.run(act, concurrency=1):
        await ordered.give("key1", "key2")
        await began.wait(2)
        await first.stop()
        assert sorted(ended.entries) == [b"1", b"2"]
        gate.set()
        await watched.journal.wait(2)
        await ordered.settle()

    assert watched.overlaps == 0
