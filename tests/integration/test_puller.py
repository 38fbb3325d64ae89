"""The pull loop never stalls, never fetches more than it has places for, and recovers."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.broker import puller as module
from runtime.broker.connection import ApiError, Broker
from runtime.broker.puller import Puller, Slots
from runtime.message import Message
from tests.support.host import consumer, eventually, fresh
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer, nats_url
from tests.support.versions import delete_consumer, keeps_creation


class Holder:
    """Takes messages in place of a binding, and releases them when the test says so."""

    def __init__(self, broker: Broker, capacity: int, **config: Any) -> None:
        self.broker = broker
        self.stream = fresh("PULL")
        self.capacity = capacity
        self.config = config
        self.max_bytes = 4_000_000
        self.held: deque[Message] = deque()
        self.most_held = 0
        self.seen: list[int] = []
        self.attempts: list[int] = []
        self.keeps = False
        self.recreated = 0
        self.renewals: list[int] = []
        self._changed = asyncio.Event()
        self.puller = Puller(
            broker,
            self.stream,
            "work",
            slots=Slots(lambda: self.capacity, lambda: len(self.held), self._free_bytes, 4_000_000),
            deliver=self._deliver,
            recreate=self._recreate,
            renewed=lambda: self.renewals.append(len(self.seen)),
        )

    async def make(self) -> None:
        await self.broker.api(
            f"STREAM.CREATE.{self.stream}", {"name": self.stream, "subjects": [f"{self.stream}.>"]}
        )
        await self._recreate()
        self.recreated = 0

    async def give(self, count: int) -> None:
        for _ in range(count):
            await self.broker.publish(f"{self.stream}.a", b"x")

    async def wait(self, count: int, timeout_s: float = 20) -> None:
        """Return when that many messages have been received."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self.seen) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"{len(self.seen)} of {count}, outstanding {self.puller.outstanding}"
            ) from None

    async def let_go(self, count: int = 1) -> None:
        for _ in range(count):
            await self.broker.send(self.held.popleft().reply, b"+ACK")
            self.puller.wake()

    async def is_idle(self) -> bool:
        return not self.held

    def _free_bytes(self) -> int:
        return self.max_bytes - sum(message.size_bytes for message in self.held)

    def _deliver(self, message: Message) -> None:
        self.held.append(message)
        self.most_held = max(self.most_held, len(self.held))
        self.seen.append(message.sequence)
        self.attempts.append(message.attempt)
        self._changed.set()
        if not self.keeps:
            asyncio.get_running_loop().call_soon(self._finish)

    def _finish(self) -> None:
        task = asyncio.ensure_future(self.let_go())
        task.add_done_callback(lambda done: done.result())

    async def _recreate(self) -> None:
        self.recreated += 1
        config = {"durable_name": "work", "ack_policy": "explicit", **self.config}
        await self.broker.api(
            f"CONSUMER.CREATE.{self.stream}.work", {"stream_name": self.stream, "config": config}
        )


@pytest.fixture
async def open_holder(broker: Broker) -> AsyncIterator[Callable[..., Any]]:
    holders: list[Holder] = []

    async def open_one(capacity: int, *, over: Broker = broker, **config: Any) -> Holder:
        holder = Holder(over, capacity, **config)
        holders.append(holder)
        await holder.make()
        await holder.puller.start()
        return holder

    yield open_one
    for holder in holders:
        await holder.puller.stop(1)


@pytest.mark.parametrize("capacity", [1, 2, 7])
@pytest.mark.parametrize("max_ack_pending", [1, 1000])
async def test_many_small_batches_never_stall(
    open_holder: Callable[..., Any], capacity: int, max_ack_pending: int
) -> None:
    holder = await open_holder(capacity, max_ack_pending=max_ack_pending)

    for number in range(1, 41):
        await holder.give(number % 4)
        await holder.wait(sum(each % 4 for each in range(1, number + 1)), timeout_s=8)

    assert holder.seen == sorted(holder.seen)
    assert len(set(holder.seen)) == len(holder.seen) == 60
    assert holder.most_held <= capacity


async def test_a_consumer_that_allows_less_than_there_are_slots_still_flows(
    open_holder: Callable[..., Any],
) -> None:
    holder = await open_holder(200, max_ack_pending=3)

    await holder.give(300)
    await holder.wait(300)

    assert sorted(holder.seen) == list(range(1, 301))
    assert holder.most_held <= 3


async def test_no_more_is_fetched_than_there_are_slots(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(3)
    holder.keeps = True

    await holder.give(50)
    await holder.wait(3)
    await holder.let_go(1)
    await holder.wait(4)
    found = await consumer(broker, holder.stream, "work")

    assert holder.most_held == 3
    assert found["num_ack_pending"] == 3
    assert found["num_pending"] == 46


async def test_a_few_free_slots_are_used_as_soon_as_nothing_is_on_its_way(
    open_holder: Callable[..., Any],
) -> None:
    holder = await open_holder(16)
    holder.keeps = True
    await holder.give(10)
    await holder.wait(10)
    await holder.let_go(2)  # too few to be asked for beside the six that are on their way

    await holder.give(8)

    await holder.wait(18, timeout_s=8)


async def test_a_request_that_nobody_served_is_followed_by_another(
    open_holder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXPIRES_S", 0.5)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    holder = await open_holder(5)
    asked: list[Message] = []
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{holder.stream}.work"
    listening = await holder.broker.subscribe(subject, asked.append)

    async def asked_again() -> bool:
        return len(asked) >= 3

    await eventually(asked_again, "a third request more")
    await listening.unsubscribe()
    await holder.give(20)
    await holder.wait(20)

    assert holder.puller.is_flowing
    assert holder.recreated == 0


@pytest.mark.parametrize(
    "limit",
    [{"max_batch": 10}, {"max_expires": 300_000_000}, {"max_bytes": 5000}],
    ids=["batch", "expires", "bytes"],
)
async def test_a_consumer_that_takes_small_requests_only_gets_small_ones(
    open_holder: Callable[..., Any], limit: dict[str, int]
) -> None:
    holder = await open_holder(100, **limit)

    await holder.give(200)
    await holder.wait(200)

    assert sorted(holder.seen) == list(range(1, 201))


async def test_a_deleted_consumer_is_made_again(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(10)
    await holder.give(5)
    await holder.wait(5)
    # An acknowledgement on its way may reach the new consumer, which then lacks that message.
    await eventually(holder.is_idle, "the last acknowledgement")
    await broker.flush()

    await delete_consumer(broker, holder.stream, "work")
    await holder.wait(10)  # a new consumer begins at the first message
    await holder.give(1)
    await holder.wait(11)

    # A busy server tells of the deletion before it has ended, and takes the first new one along.
    assert holder.recreated in {1, 2}
    assert holder.renewals == [5]  # before the first of the new one's
    assert holder.puller.is_flowing


async def test_a_consumer_that_was_recreated_is_noticed(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(10)
    await holder.give(5)
    await holder.wait(5)

    await make_anew(holder, broker)
    await holder.wait(10)

    assert holder.renewals[0] == 5


async def test_a_consumer_that_was_recreated_while_the_connection_was_lost_is_noticed(
    open_holder: Callable[..., Any], broker: Broker, nats_server: NatsServer
) -> None:
    async with Proxy(nats_server.port) as proxy:
        over = await Broker.connect(nats_url(proxy.port), name="test")
        holder = await open_holder(10, over=over)
        await holder.give(5)
        await holder.wait(5)
        await over.flush()
        proxy.cut()
        await make_anew(holder, broker)
        proxy.heal()
        await holder.wait(10)

        assert holder.renewals == [5]
        await holder.puller.stop(1)
        await over.close()


async def make_anew(holder: Holder, broker: Broker) -> None:
    await delete_consumer(broker, holder.stream, "work")
    holder.broker = broker

    async def is_made() -> bool:
        try:
            await holder._recreate()
        except ApiError:
            # The server is still removing the old consumer's folder. Or the pull loop was first and
            # the server removed the new folder: then the consumer exists and cannot be rewritten.
            listed = await broker.api(f"CONSUMER.NAMES.{holder.stream}")
            return "work" in (listed.get("consumers") or [])
        return True

    await eventually(is_made, "the new consumer")


async def test_what_the_server_had_sent_is_delivered_before_the_loop_has_stopped(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(2000)
    holder.keeps = True
    await holder.give(1500)

    await holder.wait(1)
    await holder.puller.stop(5)
    found = await consumer(broker, holder.stream, "work")

    assert found["num_ack_pending"] == len(holder.seen)
    assert holder.puller.is_stopped


@pytest.fixture
async def own_server(server_directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_server_that_was_gone_is_pulled_from_again(
    open_holder: Callable[..., Any], own_server: NatsServer, end: str
) -> None:
    broker = await Broker.connect(own_server.url, name="test")
    holder = await open_holder(10, over=broker)
    await holder.give(20)
    await holder.wait(20)

    for round_number in range(1, 4):
        await asyncio.to_thread(getattr(own_server, end))
        holder.puller.wake()
        await asyncio.to_thread(own_server.start)
        await eventually(lambda: _connected(broker), "the connection")
        await holder.give(20)

        # A message that was being settled when the server died may come again; none is missing.
        async def are_all_here(wanted: int = 20 + 20 * round_number) -> bool:
            return set(holder.seen) == set(range(1, wanted + 1))

        await eventually(are_all_here, "every message")

    assert set(holder.attempts[20:]) <= {1, 2}
    if keeps_creation(broker):
        assert holder.renewals == []
    await holder.puller.stop(1)
    await broker.close()


async def _connected(broker: Broker) -> bool:
    return broker.is_connected


async def test_a_server_that_stands_still_is_pulled_from_when_it_goes_on(
    open_holder: Callable[..., Any], own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.3)
    broker = await Broker.connect(own_server.url, name="test")
    holder = await open_holder(10, over=broker)
    await holder.give(5)
    await holder.wait(5)

    own_server.pause()

    async def troubled() -> bool:
        return not holder.puller.is_flowing

    await eventually(troubled, "a missed heartbeat")
    own_server.resume()
    await holder.give(5)
    await holder.wait(10)

    async def flowing() -> bool:
        return bool(holder.puller.is_flowing)

    await eventually(flowing, "a healed loop")
    assert holder.renewals == []
    await holder.puller.stop(1)
    await broker.close()


async def test_a_stopped_pull_loop_is_told_of_no_reconnect(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    before = list(broker._reconnect_callbacks)
    holder = await open_holder(1)
    assert len(broker._reconnect_callbacks) == len(before) + 1
    await holder.puller.stop(0)
    assert broker._reconnect_callbacks == before


async def test_the_drain_of_a_subscription_can_be_cancelled_at_any_moment(broker: Broker) -> None:
    for turns in range(40):
        subscription = await broker.subscribe(fresh("drained"), lambda _: None)
        draining = asyncio.create_task(subscription.drain(5))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_cancelled = draining.cancel()
        await asyncio.wait({draining})
        assert draining.cancelled() == was_cancelled


async def test_messages_held_and_in_flight_keep_to_the_byte_budget(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(2000)
    holder.keeps, holder.max_bytes = True, 1_000_000
    for size in (100, 100, 100, 90_000, 100, 300_000) * 20:
        await broker.publish(f"{holder.stream}.a", bytes(size))
    most_bytes, done = 0, 0

    while done < 120:
        await holder.wait(done + 1)
        here = sum(message.size_bytes for message in holder.held)
        most_bytes = max(most_bytes, here + holder.puller.outstanding_bytes)
        done += 1
        await holder.let_go()

    # The server counts slightly fewer bytes per message than the pull loop.
    assert most_bytes <= 1_010_000
    assert set(holder.attempts) == {1}
    assert holder.seen == list(range(1, 121))


async def test_a_message_that_is_larger_than_all_its_bytes_comes_alone(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(100)
    holder.keeps, holder.max_bytes = True, 100_000
    sizes = (100, 500_000, 100, 100, 700_000, 700_000, 100)
    for size in sizes:
        await broker.publish(f"{holder.stream}.a", bytes(size))
    together = []

    for number in range(1, len(sizes) + 1):
        await holder.wait(number)
        together.append(sum(message.size_bytes for message in holder.held))
        await holder.let_go()

    assert holder.seen == list(range(1, len(sizes) + 1))
    assert max(together) < 700_000 + 100_000


async def test_a_message_larger_than_its_consumer_lets_a_request_name_comes_alone(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(100, max_bytes=5000)
    asked: list[Message] = []
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{holder.stream}.work"
    listening = await broker.subscribe(subject, asked.append)

    for size in (10, 20_000, 10, 30_000, 30_000, 10):
        await broker.publish(f"{holder.stream}.a", bytes(size))
    await holder.wait(6, timeout_s=20)
    await listening.unsubscribe()

    assert holder.seen == list(range(1, 7))
    assert len(asked) < 40


async def test_few_requests_are_made_while_the_next_message_has_no_room(
    open_holder: Callable[..., Any], broker: Broker
) -> None:
    holder = await open_holder(100)
    holder.keeps, holder.max_bytes = True, 100_000
    asked: list[Message] = []
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{holder.stream}.work"
    listening = await broker.subscribe(subject, asked.append)

    for size in (10, 10, 99_900, 10):
        await broker.publish(f"{holder.stream}.a", bytes(size))
    await holder.wait(2)
    for _ in range(1000):
        holder.puller.wake()
        await asyncio.sleep(0)
    await broker.flush()
    most = len(asked)
    await holder.let_go(2)
    await holder.wait(3)
    await listening.unsubscribe()

    assert most < 10
