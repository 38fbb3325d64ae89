"""A host takes over from a dead one: the dead host's messages come first, wherever they are."""

import asyncio
import json
from typing import Any

import pytest

from runtime import Context
from runtime.broker.connection import Broker
from runtime.broker.leases import LeaseBook
from runtime.broker.mailbox import Mailbox
from runtime.broker.settler import Settler
from runtime.broker.spill_queues import SpillQueues, name_of
from runtime.broker.stream_configs import MAILBOX
from runtime.message import Message
from tests.integration.test_ordering import OrderedStream, Watched, ordered
from tests.support.host import eventually, make_manifest

__all__ = ["ordered"]

SPEC: dict[str, Any] = {"max_in_flight": 40, "concurrency": 4}
KEYS = ["key0", "key1"]
EACH = 60


class DeadHost:
    """Acts as a leading host that dies as soon as another host has its lease."""

    def __init__(self, ordered: OrderedStream) -> None:
        self._belt = ordered
        self._broker: Broker = ordered.broker
        self._book = LeaseBook(ordered.broker, ordered.name)

    async def lead(self) -> None:
        record = await self._book.read()
        assert await self._book.write("dead host", {}, record.sequence)

    async def pull(self, stream: str, durable: str, count: int) -> list[Message]:
        """Pull the messages that the host holds; `hold` extends them."""
        held: list[Message] = []
        inbox = f"_INBOX.dead.{durable.replace('~', '')}"
        await self._broker.subscribe(inbox, held.append)
        request = json.dumps({"batch": count, "no_wait": True}).encode()
        await self._broker.send(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}", request, inbox)

        async def is_all() -> bool:
            return len(held) >= count

        await eventually(is_all, f"{count} messages")
        for message in held:
            # `$JS.ACK.`, stream, consumer, deliveries, sequence, and so on.
            tokens = message.reply.split(".")
            message.stream, message.sequence = stream, int(tokens[-4])
        return held

    async def hold(self, messages: list[Message]) -> None:
        """Send in progress for these messages until another host leads."""
        moved = asyncio.Event()
        subscription = await self._book.watch(lambda _: moved.set())
        while not moved.is_set():
            for message in messages:
                await self._broker.in_progress(message)
            try:
                await asyncio.wait_for(moved.wait(), 0.5)
            except TimeoutError:
                continue
        await subscription.unsubscribe()


async def _act(watched: Watched) -> Any:
    async def act(ctx: Context, event: Any) -> None:
        await watched.work(event, 0)

    return act


@pytest.mark.parametrize("where", ["stream", "queue", "mailbox"])
async def test_what_the_dead_host_held_comes_first_although_other_messages_fill_the_room(
    ordered: OrderedStream, where: str
) -> None:
    watched, dead = Watched(), DeadHost(ordered)
    act = await _act(watched)
    spec = {**SPEC, "consumer": {"stream": ordered.stream, "ack_wait": "2s"}}
    async with ordered.run(act, **spec):
        pass  # So that its consumers exist.
    given = KEYS * EACH
    await ordered.give(*(sorted(given) if where == "queue" else given))
    await dead.lead()
    held = await dead.pull(ordered.stream, ordered.name, EACH)
    if where == "queue":
        held = await _set_aside(ordered, dead, held)
    elif where == "mailbox":
        held = await _hand_over(ordered, held)
    async with ordered.run(act, **spec):
        await dead.hold(held)
        await watched.journal.wait(EACH * len(KEYS))
        await ordered.settle()

    assert watched.done == ordered.given


async def _set_aside(
    ordered: OrderedStream, dead: DeadHost, messages: list[Message]
) -> list[Message]:
    """Move all messages of one key to its spill queue, and hold the first of them."""
    functions = {
        ordered.name: {"handler": "on_event", **SPEC, "consumer": {"stream": ordered.stream}}
    }
    queues = SpillQueues(
        ordered.broker, ordered.name, make_manifest(functions).functions[ordered.name]
    )
    name = name_of(KEYS[0])
    await queues.put(3, [(name, message) for message in messages], in_order=True)
    await queues.ensure(3)
    await _ack(ordered, messages)
    return await dead.pull(MAILBOX, queues.durable(3), 10)


async def _hand_over(ordered: OrderedStream, messages: list[Message]) -> list[Message]:
    """Hand all messages over to the mailbox, as in a drain, and hold none."""
    for message in messages:
        await Mailbox(ordered.broker).hand_over(message, ordered.name)
    await _ack(ordered, messages)
    return []


async def _ack(ordered: OrderedStream, messages: list[Message]) -> None:
    settler = Settler(ordered.broker)
    settler.ack_all(messages)
    await settler.stop(5)


async def test_what_a_paused_host_sends_back_late_does_not_stand_for_what_is_missing(
    ordered: OrderedStream,
) -> None:
    """The paused host's NAK causes a redelivery of a message that the next host has already."""
    watched, dead = Watched(), DeadHost(ordered)
    act = await _act(watched)
    spec = {**SPEC, "max_in_flight": 400, "consumer": {"stream": ordered.stream, "ack_wait": "2s"}}
    async with ordered.run(act, **spec):
        pass  # So that its consumers exist.
    await ordered.give(*KEYS * EACH)
    await dead.lead()
    held = await dead.pull(ordered.stream, ordered.name, 20)
    async with ordered.run(act, **spec):
        await dead.hold(held)
        for _ in range(3):
            for message in held[:10]:
                await ordered.broker.in_progress(message)
            for message in held[10:]:
                await ordered.broker.send(message.reply, b"-NAK")
            await asyncio.sleep(0.3)
        await watched.journal.wait(EACH * len(KEYS))
        await ordered.settle()

    once = {key: list(dict.fromkeys(numbers)) for key, numbers in watched.done.items()}
    assert once == ordered.given


async def test_a_host_that_drains_before_all_came_back_calls_nothing(
    ordered: OrderedStream,
) -> None:
    watched, dead = Watched(), DeadHost(ordered)
    act = await _act(watched)
    spec = {**SPEC, "consumer": {"stream": ordered.stream, "ack_wait": "2s"}}
    async with ordered.run(act, **spec):
        pass  # So that its consumers exist.
    await ordered.give(*KEYS * EACH)
    await dead.lead()
    held = await dead.pull(ordered.stream, ordered.name, 10)
    async with ordered.run(act, **spec) as host:
        await dead.hold(held)
        draining = asyncio.create_task(host.drain(30))
        while not draining.done():
            for message in held:
                await ordered.broker.in_progress(message)
            await asyncio.wait({draining}, timeout=0.5)
    assert watched.done == {}
    async with ordered.run(act, **spec):
        await watched.journal.wait(EACH * len(KEYS))
        await ordered.settle()

    assert watched.done == ordered.given
