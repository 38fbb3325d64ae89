"""A stream that deletes its oldest messages tells before it deletes unread ones."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from runtime import Context, Event
from runtime.broker.connection import Broker
from runtime.broker.streams import ensure
from runtime.lag import LagWatch
from runtime.manifest import Manifest
from runtime.observe.metrics import FunctionMetrics, Metrics
from runtime.unread_messages import Place, measure, slowest
from runtime.unread_watch import UnreadWatch
from tests.support.host import Journal, fresh, running_host, wait_until_settled
from tests.support.servers import NatsServer

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PAYLOAD = b"x" * 10_000


class Scene:
    """A stream with two consumers, and what is told of it."""

    def __init__(self, broker: Broker, **limits: Any) -> None:
        self.broker = broker
        self.stream = fresh("S")
        stream = {"subjects": [self.stream], "discard": "old", **limits}
        self.manifest = Manifest.model_validate({"streams": {self.stream: stream}})
        self.metrics = Metrics("0.0.0")
        lag = LagWatch(broker)
        for durable in ("quick", "slow"):
            lag.add(self.stream, durable, FunctionMetrics(durable))
        self.watch = UnreadWatch(broker, self.metrics, lag, self.manifest)

    async def begin(self) -> None:
        await ensure(self.broker, self.manifest)
        for durable in ("quick", "slow"):
            config = {"durable_name": durable, "ack_policy": "all", "deliver_policy": "all"}
            await self.broker.api(
                f"CONSUMER.CREATE.{self.stream}.{durable}",
                {"stream_name": self.stream, "config": config},
            )

    async def publish(self, count: int) -> None:
        for _ in range(count):
            await self.broker.publish(self.stream, PAYLOAD)

    async def read(self, durable: str, count: int) -> None:
        found = await self.broker.pull(
            self.stream, durable, messages=count, size_bytes=10_000_000, wait_s=10
        )
        await self.broker.request(found[-1].reply, b"+ACK", timeout_s=10)

    async def ask(self) -> tuple[int | None, str | None]:
        await self.watch._ask(self.stream)
        return self.metrics.unread_percents.get(self.stream), await self.watch.check()


async def test_the_slowest_consumer_decides_and_every_level_is_told_once(broker: Broker) -> None:
    scene = Scene(broker, max_bytes=1_000_000)
    await scene.begin()
    await scene.publish(50)
    await scene.read("quick", 50)
    with structlog.testing.capture_logs() as logged:
        percent, said = await scene.ask()
        assert percent is not None
        assert 45 <= percent <= 55
        assert said is None
        await scene.publish(35)
        percent, said = await scene.ask()
        assert percent is not None
        assert said == f"UNREAD {scene.stream} {percent}%"
        await scene.ask()
        await scene.publish(40)
        assert (await scene.ask())[0] in {98, 99, 100}
        await scene.read("slow", 200)
        await scene.read("quick", 200)
        assert await scene.ask() == (0, None)
    told = [(line["log_level"], line.get("durable"), "delete" in line["event"]) for line in logged]
    assert told == [
        ("error", "slow", True),
        ("error", "slow", True),
        ("error", "slow", True),
        ("info", "", False),
    ]
    lost = [line["at_least"] for line in logged if "were deleted" in line["event"]]
    assert lost == [line["at_most"] for line in logged if "were deleted" in line["event"]]
    assert lost == [scene.metrics.unread_deleted[scene.stream]]
    first = (await broker.api(f"STREAM.INFO.{scene.stream}"))["state"]["first_seq"]
    assert lost == [first - 1]
    shown = generate_latest(scene.metrics.registry).decode()
    assert f'runtime_stream_unread_percent{{stream="{scene.stream}"}} 0.0' in shown
    assert f'runtime_unread_deleted_total{{stream="{scene.stream}"}} {first - 1:.1f}' in shown


async def test_what_is_deleted_between_two_looks_is_counted_although_the_consumer_has_caught_up(
    broker: Broker,
) -> None:
    scene = Scene(broker, max_msgs=10)
    await scene.begin()
    await scene.publish(8)
    await scene.read("quick", 8)
    await scene.ask()
    await scene.publish(25)
    await scene.read("quick", 100)
    await scene.publish(3)
    await scene.read("slow", 100)
    await scene.read("quick", 100)
    with structlog.testing.capture_logs() as logged:
        assert await scene.ask() == (0, None)
        await scene.ask()
    lost = [line for line in logged if "were deleted" in line["event"]]
    told = {line["durable"]: (line["at_least"], line["at_most"]) for line in lost}
    assert len(lost) == 2
    assert told == {"quick": (15, 15), "slow": (26, 26)}
    assert scene.metrics.unread_deleted == {scene.stream: 26}


async def test_what_was_deleted_while_no_host_ran_is_told_before_the_first_message(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream = fresh("S")
    streams = {stream: {"subjects": [stream], "discard": "old", "max_msgs": 10}}
    functions = {stream: {"handler": "on_event", "consumer": {"stream": stream}}}
    journal = Journal()

    async def record(_: Context[None], event: Event[bytes]) -> None:
        journal.add(event.message.sequence)

    async with running_host(nats_server.url, functions, {stream: record}, streams=streams):
        await broker.publish(stream, b"x")
        await journal.wait(1)
        await wait_until_settled(broker, stream, stream)
    for _ in range(30):
        await broker.publish(stream, b"x")
    metrics = Metrics("0.0.0")
    async with running_host(
        nats_server.url, functions, {stream: record}, streams=streams, metrics=metrics
    ):
        assert metrics.unread_deleted == {stream: 20}
        await journal.wait(11)
    assert journal.entries == [1, *range(22, 32)]


async def test_a_full_stream_whose_messages_are_settled_is_in_order(broker: Broker) -> None:
    scene = Scene(broker, max_bytes=200_000)
    await scene.begin()
    with structlog.testing.capture_logs() as logged:
        for _ in range(5):
            await scene.publish(10)
            for durable in ("quick", "slow"):
                await scene.read(durable, 10)
            assert await scene.ask() == (0, None)
    assert logged == []
    assert scene.metrics.unread_deleted == {}


async def test_a_stream_of_many_messages_counts_by_their_number(broker: Broker) -> None:
    scene = Scene(broker, max_msgs=10)
    await scene.begin()
    await scene.publish(9)
    assert await scene.ask() == (90, f"UNREAD {scene.stream} 90%")


async def test_a_stream_that_the_server_does_not_know_shows_no_figure(broker: Broker) -> None:
    scene = Scene(broker, max_msgs=10)
    assert await scene.ask() == (None, None)
    await scene.begin()
    assert await scene.ask() == (0, None)
    scene.watch.follow(Manifest())
    assert scene.metrics.unread_percents == {}


def _stream(first: int, last: int, *, deleted: int = 0, **config: Any) -> Mapping[str, Any]:
    messages = last - first + 1 - deleted
    state = {
        "first_seq": first,
        "last_seq": last,
        "messages": messages,
        "bytes": messages * 100,
        "first_ts": (NOW - timedelta(days=7)).isoformat(),
    }
    return {"state": state, "config": config, "ts": NOW.isoformat()}


@pytest.mark.parametrize("several", [False, True])
async def test_a_consumer_of_rare_messages_is_not_behind_because_of_the_others(
    broker: Broker, *, several: bool
) -> None:
    scene = Scene(broker, max_msgs=10)
    scene.manifest = Manifest.model_validate(
        {"streams": {scene.stream: {"subjects": [f"{scene.stream}.*"], "max_msgs": 10}}}
    )
    await scene.begin()
    rare, other, often = (f"{scene.stream}.{name}" for name in ("rare", "other", "often"))
    filters = {"filter_subjects": [rare, other]} if several else {"filter_subject": rare}
    config = {"durable_name": "filtered", "ack_policy": "explicit", **filters}
    await broker.api(
        f"CONSUMER.CREATE.{scene.stream}.filtered",
        {"stream_name": scene.stream, "config": config},
    )
    lag = LagWatch(broker)
    lag.add(scene.stream, "filtered", FunctionMetrics("filtered"))
    scene.watch = UnreadWatch(broker, scene.metrics, lag, scene.manifest)
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            for _ in range(10):
                await broker.publish(often, b"x")
            assert await scene.ask() == (0, None)
        await broker.publish(rare, b"x")
        assert await scene.ask() == (10, None)
        for _ in range(8):
            await broker.publish(often, b"x")
        assert (await scene.ask())[0] == 90
    assert [line["percent"] for line in logged] == [90]


@pytest.mark.parametrize(
    ("age_h", "percent"), [(1, 0), (24 * 6, 85), (24 * 7 - 1, 99), (24 * 8, 100)]
)
def test_the_age_of_the_oldest_unread_message_counts(age_h: int, percent: int) -> None:
    found = _stream(1, 1000, max_age=7 * 86_400 * 10**9, max_bytes=10**9)
    places = {"a": Place(990, 10)}
    oldest_at = NOW - timedelta(hours=age_h)
    unread = measure(found, places, "a", oldest_at)
    assert (unread.durable, unread.percent, unread.limit) == ("a", percent, "max_age")


async def test_an_old_message_is_looked_at_only_when_age_can_matter(broker: Broker) -> None:
    scene = Scene(broker, max_age="3600s")
    await scene.begin()
    await scene.publish(3)
    await scene.read("slow", 1)
    found = await broker.api(f"STREAM.INFO.{scene.stream}")
    places = {"slow": await scene.watch._place(scene.stream, "slow", found)}
    assert await scene.watch._oldest_unread_at(scene.stream, found, places, "slow") is None
    later = datetime.fromisoformat(found["ts"]) + timedelta(minutes=50)
    found["ts"] = later.isoformat()
    oldest = await scene.watch._oldest_unread_at(scene.stream, found, places, "slow")
    second = await broker.api(f"STREAM.MSG.GET.{scene.stream}", {"seq": 2})
    assert oldest == datetime.fromisoformat(second["message"]["time"])
    await broker.api(f"STREAM.PURGE.{scene.stream}")
    assert await scene.watch._oldest_unread_at(scene.stream, found, places, "slow") is None


@given(
    st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 2 * 10**6), st.integers(1, 10**9)
)
def test_what_is_unread_is_a_share_whatever_the_server_says(
    first: int, length: int, acked: int, limit: int
) -> None:
    found = _stream(first, first + length, max_bytes=limit, max_msgs=-1)
    acked = min(acked, first + length)
    places = {"a": Place(acked, first + length - acked), "b": Place(first + length, 0)}
    durable = slowest(places)
    percent = measure(found, places, durable, None).percent
    assert 0 <= percent <= 100
    if acked == first + length:
        assert (durable, percent) == (None, 0)
    if acked < first and limit <= (length + 1) * 100:
        assert percent == 100
