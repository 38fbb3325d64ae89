"""JetStream refuses every configuration that the manifest checks refuse with its error codes."""

from typing import Any

from runtime.broker.connection import ApiError, Broker
from tests.support.servers import NatsServer

HOUR_NS = 3600 * 10**9


async def code_of(broker: Broker, subject: str, request: dict[str, Any]) -> int:
    try:
        await broker.api(subject, request)
    except ApiError as refusal:
        return refusal.err_code
    return 0


async def create(broker: Broker, name: str, **config: Any) -> int:
    request = {"name": name, "storage": "memory", **config}
    return await code_of(broker, f"STREAM.CREATE.{name}", request)


async def consume(broker: Broker, stream: str, durable: str, **config: Any) -> int:
    request = {
        "stream_name": stream,
        "config": {"durable_name": durable, "ack_policy": "explicit", **config},
    }
    return await code_of(broker, f"CONSUMER.CREATE.{stream}.{durable}", request)


async def test_streams_with_shared_subjects_are_refused(nats_server: NatsServer) -> None:
    broker = await Broker.connect(nats_server.url, name="truth")

    assert await create(broker, "first", subjects=["truth.a.>"]) == 0
    assert await create(broker, "second", subjects=["truth.a.b"]) == 10065
    assert await create(broker, "third", subjects=["truth.c.*", "truth.c.b"]) == 10052

    await broker.close()


async def test_streams_with_impossible_times_are_refused(nats_server: NatsServer) -> None:
    broker = await Broker.connect(nats_server.url, name="truth")

    short = await create(broker, "short", subjects=["truth.s"], max_age=10**6)
    window = await create(
        broker, "window", subjects=["truth.w"], max_age=HOUR_NS, duplicate_window=2 * HOUR_NS
    )

    assert (short, window) == (10052, 10052)
    await broker.close()


async def test_consumers_that_get_in_each_others_way_are_refused(nats_server: NatsServer) -> None:
    broker = await Broker.connect(nats_server.url, name="truth")
    await create(broker, "queue", subjects=["truth.q.>"], retention="workqueue")

    both = await consume(broker, "queue", "both", filter_subjects=["truth.q.*", "truth.q.b"])
    first = await consume(broker, "queue", "one", filter_subjects=["truth.q.a"])
    other = await consume(broker, "queue", "two", filter_subjects=["truth.q.*"])
    new = await consume(broker, "queue", "new", filter_subjects=["truth.q.c"], deliver_policy="new")

    assert (both, first, other, new) == (10138, 0, 10100, 10101)
    await broker.close()
