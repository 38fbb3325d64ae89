"""`event.may_be_repeated`: whether an earlier delivery may have been called already."""

import asyncio
from typing import Any

from runtime import Context, Publication, Unavailable
from runtime.binding.ordered.remote_call import call_headers, called_message
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetters, Selection
from runtime.message import Event, Message
from tests.support.host import (
    Journal,
    consumer,
    eventually,
    fresh,
    running_host,
    wait_for_letters,
)
from tests.support.servers import NatsServer

QUICK = {"attempts": 2, "delay": "10ms", "jitter": 0}


def _spec(stream: str, **spec: Any) -> dict[str, Any]:
    return {"handler": "on_event", "consumer": {"stream": stream}, "retry": QUICK, **spec}


def _streams(stream: str) -> dict[str, Any]:
    return {stream: {"subjects": [f"{stream}.>"]}}


async def test_a_first_delivery_is_none_and_the_next_ones_and_a_redrive_are(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream, journal = fresh("again"), fresh("AGAIN"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        journal.add((ctx.attempt, event.may_be_repeated))
        if len(journal.entries) < 3:
            raise ValueError("not yet")

    async with running_host(
        nats_server.url, {name: _spec(stream)}, {name: act}, streams=_streams(stream)
    ):
        await broker.publish(f"{stream}.a", b"x")
        await wait_for_letters(broker, name)
        await DeadLetters(broker).redrive(Selection(function=name))
        await journal.wait(3)

    assert journal.entries == [(1, False), (2, True), (1, True)]


async def test_a_call_made_again_in_place_after_an_outage_is_repeated(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream, journal = fresh("again"), fresh("AGAIN"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        journal.add((ctx.attempt, event.may_be_repeated))
        if len(journal.entries) == 1:
            raise Unavailable("a server", "away for a moment")

    async with running_host(
        nats_server.url, {name: _spec(stream)}, {name: act}, streams=_streams(stream)
    ):
        await broker.publish(f"{stream}.a", b"x")
        await journal.wait(2)

    assert journal.entries == [(1, False), (1, True)]


async def test_a_batch_that_is_called_again_in_parts_is_repeated(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream, journal = fresh("again"), fresh("AGAIN"), Journal()

    async def act(ctx: Context, batch: Any) -> None:
        journal.add([(event.raw, event.may_be_repeated) for event in batch])
        if len(batch) > 1:
            raise ValueError("too many")

    batch = {"size": 2, "wait": "5s"}
    spec = _spec(stream, handler="on_batch", batch=batch)
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=_streams(stream)):
        await broker.publish_many([Publication(f"{stream}.a", b"%d" % n, f"{n}") for n in (1, 2)])
        await journal.wait(3)

    assert journal.entries == [
        [(b"1", False), (b"2", False)],
        [(b"1", True)],
        [(b"2", True)],
    ]


async def test_what_a_drain_hands_over_is_repeated_although_no_attempt_is_used_up(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream, journal = fresh("again"), fresh("AGAIN"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        journal.add((ctx.attempt, event.may_be_repeated))
        if len(journal.entries) == 1:
            await asyncio.Event().wait()

    functions, streams = {name: _spec(stream)}, _streams(stream)
    async with running_host(nats_server.url, functions, {name: act}, streams=streams, grace_s=0.05):
        await broker.publish(f"{stream}.a", b"x")
        await journal.wait(1)
    async with running_host(nats_server.url, functions, {name: act}, streams=streams):
        await journal.wait(2)

    assert journal.entries == [(1, False), (1, True)]


async def test_what_was_set_aside_for_fairness_counts_as_repeated(
    broker: Broker, nats_server: NatsServer
) -> None:
    """A host that died while it spilled a message may have called the function with it."""
    name, stream, journal = fresh("again"), fresh("AGAIN"), Journal()
    began = asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        await began.wait()
        journal.add((event.sequence, ctx.attempt, event.may_be_repeated))

    async def all_are_taken() -> bool:
        return bool((await consumer(broker, stream, name))["num_pending"] == 0)

    spec = _spec(stream, fair_by={"token": 1}, concurrency=1, max_in_flight=8)
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=_streams(stream)):
        await broker.publish_many([Publication(f"{stream}.a", b"x", f"{n}") for n in range(200)])
        await eventually(all_are_taken, "the moving aside")
        began.set()
        await journal.wait(200)

    assert {attempt for _, attempt, _ in journal.entries} == {1}
    first = next(repeated for sequence, _, repeated in journal.entries if sequence == 1)
    assert not first
    assert any(repeated for _, _, repeated in journal.entries)


def test_a_call_on_another_host_knows_whether_it_is_repeated() -> None:
    first = Message("s.a", b"x", stream="S", sequence=1, stored_at_ns=5)
    again = Message("s.a", b"x", stream="S", sequence=1, stored_at_ns=5, called_before=True)

    def there(message: Message) -> bool:
        call = Message("call", message.data, call_headers(message, "f"))
        found = called_message(call)
        assert found is not None
        return Event(found, found.data).may_be_repeated

    assert not there(first)
    assert there(again)
