"""Ordered functions with few places keep the order too."""

import asyncio
from typing import Any

import pytest

from runtime import Context, Publication, Retry
from runtime.broker import function_consumers
from runtime.broker.connection import Broker
from runtime.broker.function_consumers import FunctionConsumer
from runtime.broker.stream_configs import MAILBOX
from runtime.errors import ConfigError
from tests.integration.test_ordering import OrderedStream, Watched, ordered
from tests.support.host import Journal, consumer, eventually, fresh, running_host
from tests.support.servers import NatsServer

__all__ = ["ordered"]

RETRY = {"attempts": 4, "delay": "100ms", "factor": 1, "jitter": 0}
ROOM = [
    pytest.param({"max_in_flight": 2}, id="of_one"),
    pytest.param({"max_in_flight": 40, "concurrency": 4}, id="less_than_comes"),
]


@pytest.mark.parametrize("spec", ROOM)
@pytest.mark.parametrize("keys", [1, 30])
async def test_a_failed_message_comes_back_although_those_behind_it_fill_every_place(
    ordered: OrderedStream, spec: dict[str, Any], keys: int
) -> None:
    watched = Watched()
    names = [f"key{n}" for n in range(keys)]

    async def act(ctx: Context, event: Any) -> None:
        if int(event.raw) % 4 == 1 and ctx.attempt == 1:
            raise Retry("not yet", delay_s=0.2)
        await watched.work(event, 0)

    async with ordered.run(act, retry=RETRY, **spec):
        for _ in range(120 // keys):
            await ordered.give(*names)
        await watched.journal.wait(120)

    assert watched.done == ordered.given


async def test_what_was_on_its_way_aside_when_its_host_drained_overtakes_nothing(
    ordered: OrderedStream,
) -> None:
    """A message too large to be spilled delays the moves of the messages behind it."""
    watched, gate = Watched(), asyncio.Event()
    spec: dict[str, Any] = {"max_in_flight": 40, "concurrency": 4, "max_in_flight_bytes": "64MB"}

    async def act(ctx: Context, event: Any) -> None:
        await gate.wait()
        watched.journal.add(int(event.raw[:4]))

    async def is_on_its_way() -> bool:
        found = await consumer(ordered.broker, ordered.stream, ordered.name)
        return bool(found["delivered"]["stream_seq"] > 25 and found["num_ack_pending"] <= 20)

    async with ordered.run(act, **spec) as first:
        for number in range(1, 41):
            large = b" " * (ordered.broker.max_payload_bytes - 200) if number == 21 else b""
            await ordered.give("key0", data=b"%4d" % number + large)
        await eventually(is_on_its_way, "some behind the large one")
        await first.drain(0.3)
    gate.set()
    async with ordered.run(act, **spec):
        await watched.journal.wait(40)
        await ordered.settle()

    assert list(dict.fromkeys(watched.journal.entries)) == list(range(1, 41))


async def test_messages_too_large_to_be_set_aside_wait_for_those_that_were(
    ordered: OrderedStream,
) -> None:
    """They use all bytes of the function, yet the spilled messages must come back."""
    journal, gate = Journal(), asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        await gate.wait()
        journal.add(int(event.raw[:4]))

    async def are_here(ack_pending: int) -> bool:
        found = await consumer(ordered.broker, ordered.stream, ordered.name)
        return bool(found["num_ack_pending"] <= ack_pending and not found["num_pending"])

    spec: dict[str, Any] = {"max_in_flight": 100, "concurrency": 4, "max_in_flight_bytes": "4MB"}
    async with ordered.run(act, **spec):
        for number in range(1, 301):
            await ordered.give("key0", data=b"%4d" % number)
        await eventually(lambda: are_here(60), "most of them set aside")
        for number in range(301, 309):
            large = bytes(ordered.broker.max_payload_bytes - 300)
            await ordered.give("key0", data=b"%4d" % number + large)
        gate.set()
        await journal.wait(308)

    assert journal.entries == list(range(1, 309))


@pytest.mark.parametrize("end", ["drain", "stop"])
@pytest.mark.parametrize("size_bytes", [350_000, 400_000])
async def test_what_waited_for_a_retry_comes_first_although_it_is_more_than_there_is_room_for(
    ordered: OrderedStream, end: str, size_bytes: int
) -> None:
    """Messages that wait for a retry may use twice the bytes; the next host has room for all."""
    journal, gate, failed = Journal(), asyncio.Event(), Journal()

    async def act(ctx: Context, event: Any) -> None:
        if not gate.is_set():
            failed.add(event.raw[:4])
            raise Retry("not yet", delay_s=2)
        journal.add(int(event.raw[:4]))

    async def holds_too_much() -> bool:
        found = await consumer(ordered.broker, ordered.stream, ordered.name)
        return bool(found["num_ack_pending"] * size_bytes > 600_000)

    spec: dict[str, Any] = {
        "max_in_flight": 400,
        "max_in_flight_bytes": "500KB",
        "retry": {**RETRY, "attempts": 100},
    }
    async with ordered.run(act, **spec) as first:
        for number in range(1, 20):
            await ordered.give("key0", data=b"%4d" % number + bytes(size_bytes))
        await failed.wait(1)
        await eventually(holds_too_much, "more than there is room for")
        await (first.drain(0.2) if end == "drain" else first.stop())
    for number in range(20, 40):
        await ordered.give("key0", data=b"%4d" % number)
    gate.set()
    async with ordered.run(act, **spec):
        await journal.wait(39)

    assert journal.entries == list(range(1, 40))


async def test_messages_behind_keys_that_fail_leave_room_for_those_of_others(
    broker: Broker, nats_server: NatsServer
) -> None:
    """They are many times what the function may hold, and wait longer than the test lasts."""
    stream, name, journal = fresh("JOBS"), fresh("ordered"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        if ".dead." in event.subject:
            raise Retry("it is away", delay_s=1000)
        journal.add(int(event.raw[:4]))

    async def are_all_fetched() -> bool:
        return not (await consumer(broker, stream, name))["num_pending"]

    async def give(tenant: str, keys: int, count: int) -> None:
        await broker.publish_many(
            [
                Publication(
                    f"{stream}.{tenant}.{n % keys}", b"%4d" % n + bytes(500), f"{tenant}{n}"
                )
                for n in range(count)
            ]
        )

    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream},
        "ordered_by": {"token": 3},
        "fair_by": {"token": 2},
        "max_in_flight_bytes": "100KB",
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        await give("dead", 20, 1500)
        await eventually(are_all_fetched, "all messages that wait, fetched or set aside")
        await give("good", 1, 600)
        await journal.wait(600)

    assert journal.entries == list(range(600))


async def test_a_message_that_fails_while_the_function_is_paused_is_finished_in_order(
    ordered: OrderedStream,
) -> None:
    if ordered.broker.server_version < function_consumers.PAUSE_SINCE:
        with pytest.raises(ConfigError, match="cannot pause a consumer"):
            function_consumers.check_pausing(ordered.broker.server_version)
        return
    watched, failed, looked = Watched(), asyncio.Event(), asyncio.Event()
    consumers = [
        FunctionConsumer(ordered.name, stream, ordered.name, 0, 0, 0)
        for stream in (ordered.stream, MAILBOX)
    ]

    async def act(ctx: Context, event: Any) -> None:
        if event.raw == b"1" and ctx.attempt == 1:
            await looked.wait()
            failed.set()
            raise Retry("not yet", delay_s=0.1)
        await watched.work(event, 0)

    async with ordered.run(act):
        await ordered.give("key0", "key0", "key1")
        await watched.journal.wait(1)
        await function_consumers.pause(ordered.broker, consumers, function_consumers.FOR_EVER)
        looked.set()
        await failed.wait()
        await watched.journal.wait(3)
        await ordered.give("key0")
        await function_consumers.resume(ordered.broker, consumers)
        await watched.journal.wait(4)

    assert watched.done == ordered.given


async def test_a_message_that_fails_again_is_waited_for_anew(ordered: OrderedStream) -> None:
    watched = Watched()

    async def act(ctx: Context, event: Any) -> None:
        if event.raw == b"1" and ctx.attempt < 3:
            raise Retry("not yet", delay_s=0.1 if ctx.attempt == 1 else 2)
        await watched.work(event, 0)

    async with ordered.run(act):
        await ordered.give("key0", "key0")
        await watched.journal.wait(2)

    assert watched.done == ordered.given
