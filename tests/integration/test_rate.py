"""A function whose manifest limits its rate, on a real server."""

import asyncio
from typing import Any

import pytest

from runtime import Context, Reject
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters, Selection
from runtime.broker.mailbox import Mailbox
from runtime.broker.stream_configs import MAILBOX
from runtime.context import Publication
from runtime.message import Message
from tests.support.host import (
    QUICK,
    Journal,
    consumer,
    eventually,
    fresh,
    running_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.support.servers import NatsServer

MESSAGES = 60
LIMIT_PER_S = 60
BURST = 6


class RateLimitedFunction:
    """A function on a stream with messages, and the time of each call."""

    def __init__(self, broker: Broker, url: str) -> None:
        self.broker = broker
        self.url = url
        self.stream = fresh("METERED")
        self.name = fresh("limited")
        self.journal = Journal()
        self._time = asyncio.get_running_loop().time
        self._began_s = 0.0

    def run(self, act: Any, **spec: Any) -> Any:
        self._began_s = self._time()
        stated = {
            "handler": "on_event",
            "consumer": {"stream": self.stream},
            "retry": QUICK,
            "rate": {"limit": f"{LIMIT_PER_S}/s", "burst": BURST},
            **spec,
        }
        streams = {self.stream: {"subjects": [f"{self.stream}.>"]}}
        return running_host(self.url, {self.name: stated}, {self.name: act}, streams=streams)

    async def give(self, count: int, data: bytes = b"x") -> None:
        subject = f"{self.stream}.a"
        await self.broker.publish_many(
            [Publication(subject, data, fresh("id")) for _ in range(count)]
        )

    def note(self, messages: int = 1) -> None:
        for _ in range(messages):
            self.journal.add(self._time() - self._began_s)

    def check_pace(self, hosts: int = 1) -> None:
        """Assert that no call came earlier than burst and limit allow since before the start."""
        for number, at_s in enumerate(self.journal.entries, 1):
            earliest_s = (number - BURST * hosts) / (LIMIT_PER_S * hosts)
            assert at_s >= earliest_s, f"message {number} came at {at_s:.3f} s"


@pytest.fixture
async def limited(broker: Broker, nats_server: NatsServer) -> RateLimitedFunction:
    return RateLimitedFunction(broker, nats_server.url)


async def test_a_flood_is_worked_off_at_the_rate(limited: RateLimitedFunction) -> None:
    async def act(ctx: Context, event: Any) -> None:
        limited.note()

    async with limited.run(act):
        await limited.give(MESSAGES)
        await limited.journal.wait(MESSAGES)
        await wait_until_settled(limited.broker, limited.stream, limited.name)

    limited.check_pace()
    assert len(limited.journal.entries) == MESSAGES


async def test_what_waits_for_its_turn_waits_at_the_server(limited: RateLimitedFunction) -> None:
    release = asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        limited.note()
        await release.wait()

    async with limited.run(act, concurrency=64, rate={"limit": "1/h", "burst": 6}):
        await limited.give(MESSAGES)
        await limited.journal.wait(6)
        found = await consumer(limited.broker, limited.stream, limited.name)
        release.set()

    # The host holds six messages and asks for no others, although it has 58 free places.
    assert (found["num_ack_pending"], found["num_pending"], found["num_waiting"]) == (6, 54, 0)


async def test_batches_keep_to_the_rate_of_messages(limited: RateLimitedFunction) -> None:
    async def act(ctx: Context, batch: Any) -> None:
        limited.note(len(batch))

    async with limited.run(act, handler="on_batch", batch={"size": 50, "wait": "100ms"}):
        await limited.give(MESSAGES)
        await limited.journal.wait(MESSAGES)

    limited.check_pace()


async def test_a_batch_is_filled_through_its_window_at_the_rate(
    limited: RateLimitedFunction,
) -> None:
    sizes = Journal()

    async def act(ctx: Context, batch: Any) -> None:
        sizes.add(len(batch))

    # The burst alone would make a batch of at most 6.
    async with limited.run(act, handler="on_batch", batch={"size": 20, "wait": "20s"}):
        await limited.give(40)
        await sizes.wait(2)

    assert sizes.entries == [20, 20]


async def test_what_is_redriven_keeps_to_the_rate_too(limited: RateLimitedFunction) -> None:
    may_pass = False

    async def act(ctx: Context, event: Any) -> None:
        if not may_pass:
            raise Reject("BAD")
        limited.note()

    async with limited.run(act):
        await limited.give(20)
        await wait_for_letters(limited.broker, limited.name, 20)
    may_pass = True
    letters = DeadLetters(limited.broker)
    await letters.redrive(Selection(function=limited.name))
    async with limited.run(act):
        await limited.journal.wait(20)

    limited.check_pace()


async def test_a_drain_does_not_wait_for_turns_and_uses_up_no_attempt(
    limited: RateLimitedFunction,
) -> None:
    attempts = Journal()

    async def act(ctx: Context, event: Any) -> None:
        attempts.add((event.message.stream, event.message.sequence, ctx.attempt))

    async def is_here() -> bool:
        found = await consumer(limited.broker, MAILBOX, limited.name)
        return bool(found["num_ack_pending"])

    async with limited.run(act, rate={"limit": "1/h", "burst": 1}) as host:
        await limited.give(1)
        await attempts.wait(1)
        # The mailbox's request for one message was at the server before the last token was used.
        early = Message(f"{limited.stream}.a", b"x", stream=limited.stream, sequence=7)
        await Mailbox(limited.broker).post(early, limited.name)
        await eventually(is_here, "a message that is here before its turn")
        before_s = asyncio.get_running_loop().time()
        await host.drain(30)
        took_s = asyncio.get_running_loop().time() - before_s
    done_before = list(attempts.entries)
    async with limited.run(act):
        await attempts.wait(2)

    assert took_s < 25
    assert done_before == [(limited.stream, 1, 1)]
    assert attempts.entries[1:] == [(limited.stream, 7, 1)]


async def test_two_hosts_have_the_rate_each(limited: RateLimitedFunction) -> None:
    async def act(ctx: Context, event: Any) -> None:
        limited.note()

    async with limited.run(act), limited.run(act):
        await limited.give(MESSAGES)
        await limited.journal.wait(MESSAGES)
        await wait_until_settled(limited.broker, limited.stream, limited.name)

    limited.check_pace(hosts=2)
