"""The pull loop: it never stalls, never fetches what has no place, and heals itself."""

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
from tests.support.servers import NatsServer
from tests.support.versions import delete_consumer, keeps_creation


class SettlementBackends:
    """Whoever handles the messages: takes them, and lets go of them when the test says so."""

    def __init__(self, broker: Broker, capacity: int, **config: Any) -> None:
        self.broker = broker
        self.stream = fresh("PULL")
        self.capacity = capacity
        self.config = config
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
            slots=Slots(lambda: self.capacity, lambda: len(self.held)),
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
        """Return when so many messages have been seen."""
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
            self.puller.poke()

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
async def open_desk(broker: Broker) -> AsyncIterator[Callable[..., Any]]:
    desks: list[SettlementBackends] = []

    async def open_one(
        capacity: int, *, over: Broker = broker, **config: Any
    ) -> SettlementBackends:
        desk = SettlementBackends(over, capacity, **config)
        desks.append(desk)
        await desk.make()
        await desk.puller.start()
        return desk

    yield open_one
    for desk in desks:
        await desk.puller.stop(1)


@pytest.mark.parametrize("capacity", [1, 2, 7])
@pytest.mark.parametrize("max_ack_pending", [1, 1000])
async def test_many_small_batches_never_stall(
    open_desk: Callable[..., Any], capacity: int, max_ack_pending: int
) -> None:
    desk = await open_desk(capacity, max_ack_pending=max_ack_pending)

    for number in range(1, 41):
        await desk.give(number % 4)
        await desk.wait(sum(each % 4 for each in range(1, number + 1)), timeout_s=2)

    assert desk.seen == sorted(desk.seen)
    assert len(set(desk.seen)) == len(desk.seen) == 60
    assert desk.most_held <= capacity


async def test_a_consumer_that_allows_less_than_there_are_slots_still_flows(
    open_desk: Callable[..., Any],
) -> None:
    desk = await open_desk(200, max_ack_pending=3)

    await desk.give(300)
    await desk.wait(300, timeout_s=10)

    assert sorted(desk.seen) == list(range(1, 301))
    assert desk.most_held <= 3


async def test_no_more_is_fetched_than_there_are_slots(
    open_desk: Callable[..., Any], broker: Broker
) -> None:
    desk = await open_desk(3)
    desk.keeps = True

    await desk.give(50)
    await desk.wait(3)
    await desk.let_go(1)
    await desk.wait(4)
    found = await consumer(broker, desk.stream, "work")

    assert desk.most_held == 3
    assert found["num_ack_pending"] == 3
    assert found["num_pending"] == 46


async def test_a_few_free_slots_are_used_as_soon_as_nothing_is_on_its_way(
    open_desk: Callable[..., Any],
) -> None:
    desk = await open_desk(16)
    desk.keeps = True
    await desk.give(10)
    await desk.wait(10)
    await desk.let_go(2)  # too few to be asked for beside the six that are on their way

    await desk.give(8)

    await desk.wait(18, timeout_s=2)


async def test_a_request_that_nobody_served_is_followed_by_another(
    open_desk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXPIRES_S", 0.5)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    desk = await open_desk(5)

    async def asked_again() -> bool:
        return bool(desk.puller._requests >= 4)

    await eventually(asked_again, "a fourth request")
    await desk.give(20)
    await desk.wait(20, timeout_s=3)

    assert desk.puller.is_flowing
    assert desk.recreated == 0


async def test_a_server_that_takes_small_requests_only_gets_small_ones(
    open_desk: Callable[..., Any],
) -> None:
    desk = await open_desk(100, max_batch=10)

    await desk.give(200)
    await desk.wait(200, timeout_s=10)

    assert sorted(desk.seen) == list(range(1, 201))


async def test_a_deleted_consumer_is_made_again(
    open_desk: Callable[..., Any], broker: Broker
) -> None:
    desk = await open_desk(10)
    await desk.give(5)
    await desk.wait(5)

    await delete_consumer(broker, desk.stream, "work")
    await desk.wait(10)  # a new consumer begins at the first message
    await desk.give(1)
    await desk.wait(11)

    assert desk.recreated == 1
    assert desk.renewals == [5]  # before the first of the new one's
    assert desk.puller.is_flowing


async def test_one_that_somebody_else_has_made_anew_is_noticed(
    open_desk: Callable[..., Any], broker: Broker
) -> None:
    desk = await open_desk(10)
    await desk.give(5)
    await desk.wait(5)

    await make_anew(desk, broker)
    await desk.wait(10)

    assert desk.renewals[0] == 5


async def test_one_that_was_made_anew_while_the_connection_was_lost_is_noticed(
    open_desk: Callable[..., Any], broker: Broker, nats_server: NatsServer
) -> None:
    async with Proxy(nats_server.port) as proxy:
        over = await Broker.connect(f"nats://127.0.0.1:{proxy.port}", name="test")
        desk = await open_desk(10, over=over)
        await desk.give(5)
        await desk.wait(5)
        await over.flush()
        proxy.cut()
        await make_anew(desk, broker)
        proxy.heal()
        await desk.wait(10)

        assert desk.renewals == [5]
        await desk.puller.stop(1)
        await over.close()


async def make_anew(desk: SettlementBackends, broker: Broker) -> None:
    await delete_consumer(broker, desk.stream, "work")
    desk.broker = broker

    async def is_made() -> bool:
        try:
            await desk._recreate()
        except ApiError:
            return False  # The server is still removing the old one's folder.
        return True

    await eventually(is_made, "the new consumer")


async def test_what_the_server_had_sent_is_delivered_before_the_loop_has_stopped(
    open_desk: Callable[..., Any], broker: Broker
) -> None:
    desk = await open_desk(2000)
    desk.keeps = True
    await desk.give(1500)

    await desk.wait(1, timeout_s=5)
    await desk.puller.stop(5)
    found = await consumer(broker, desk.stream, "work")

    assert found["num_ack_pending"] == len(desk.seen)
    assert desk.puller._task is not None
    assert desk.puller._task.done()


@pytest.fixture
async def own_server(server_directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_server_that_was_gone_is_pulled_from_again(
    open_desk: Callable[..., Any], own_server: NatsServer, end: str
) -> None:
    broker = await Broker.connect(own_server.url, name="test")
    desk = await open_desk(10, over=broker)
    await desk.give(20)
    await desk.wait(20)

    for round_number in range(1, 4):
        await asyncio.to_thread(getattr(own_server, end))
        desk.puller.poke()
        await asyncio.to_thread(own_server.start)
        await eventually(lambda: _connected(broker), "the connection")
        await desk.give(20)

        # What was being settled when the server died may come once more; nothing is missing.
        async def are_all_here(wanted: int = 20 + 20 * round_number) -> bool:
            return set(desk.seen) == set(range(1, wanted + 1))

        await eventually(are_all_here, "every message")

    assert set(desk.attempts[20:]) <= {1, 2}
    if keeps_creation(broker):
        assert desk.renewals == []
    await desk.puller.stop(1)
    await broker.close()


async def _connected(broker: Broker) -> bool:
    return broker.is_connected


async def test_a_server_that_stands_still_is_pulled_from_when_it_goes_on(
    open_desk: Callable[..., Any], own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.3)
    broker = await Broker.connect(own_server.url, name="test")
    desk = await open_desk(10, over=broker)
    await desk.give(5)
    await desk.wait(5)

    own_server.pause()

    async def troubled() -> bool:
        return not desk.puller.is_flowing

    await eventually(troubled, "a missed heartbeat")
    own_server.resume()
    await desk.give(5)
    await desk.wait(10)

    async def flowing() -> bool:
        return bool(desk.puller.is_flowing)

    await eventually(flowing, "a healed loop")
    assert desk.renewals == []
    await desk.puller.stop(1)
    await broker.close()


async def test_one_that_has_stopped_is_told_of_no_reconnect_any_more(
    open_desk: Callable[..., Any], broker: Broker
) -> None:
    before = list(broker._reconnect_callbacks)
    desk = await open_desk(1)
    assert len(broker._reconnect_callbacks) == len(before) + 1
    await desk.puller.stop(0)
    assert broker._reconnect_callbacks == before


async def test_whoever_drains_a_subscription_can_be_cancelled_at_any_moment(broker: Broker) -> None:
    for turns in range(40):
        subscription = await broker.subscribe(fresh("drained"), lambda _: None)
        draining = asyncio.create_task(subscription.drain(5))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_cancelled = draining.cancel()
        await asyncio.wait({draining})
        assert draining.cancelled() == was_cancelled
