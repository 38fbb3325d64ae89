"""`ctx.pull`: an endpoint reads a durable consumer for its caller."""

import asyncio
from typing import Any

import pytest

from runtime import Context, NoAnswer, RequestFailed
from runtime.broker.connection import Broker
from runtime.context import Scope
from runtime.observe.logs import get_logger
from tests.support.host import eventually, fresh


async def consumer_of(broker: Broker, *payloads: bytes, **config: Any) -> tuple[Context, str]:
    name = fresh("READ")
    stream = {"name": name, "subjects": [f"{name}.>"], "storage": "memory"}
    await broker.api(f"STREAM.CREATE.{name}", stream)
    await add(broker, name, *payloads)
    settings = {"durable_name": "reader", "ack_policy": "explicit", **config}
    await broker.api(
        f"CONSUMER.DURABLE.CREATE.{name}.reader", {"stream_name": name, "config": settings}
    )
    return Context(Scope("poll", None, broker, {}, get_logger("test"))), name


async def add(broker: Broker, name: str, *payloads: bytes) -> None:
    for payload in payloads:
        await broker.publish(f"{name}.a", payload)


async def test_a_pull_returns_at_once_what_is_there(broker: Broker) -> None:
    ctx, name = await consumer_of(broker, b"1", b"2", b"3")

    first = await ctx.pull(name, "reader", messages=2, wait_s=30)
    rest = await ctx.pull(name, "reader", messages=2, wait_s=0)

    assert [(each.data, each.sequence, each.attempt) for each in first] == [
        (b"1", 1, 1),
        (b"2", 2, 1),
    ]
    assert [each.data for each in rest] == [b"3"]
    assert await ctx.pull(name, "reader") == []
    # Each acknowledgement is confirmed by the server.
    for each in [*first, *rest]:
        await ctx.request(each.reply, b"+ACK")
    assert (await broker.api(f"CONSUMER.INFO.{name}.reader"))["ack_floor"]["stream_seq"] == 3


async def test_a_pull_waits_for_the_first_message_and_no_longer(broker: Broker) -> None:
    ctx, name = await consumer_of(broker)

    assert await ctx.pull(name, "reader", wait_s=0.05) == []
    waiting = asyncio.create_task(_pull(ctx, name))
    await eventually(lambda: is_waited_for(broker, name), "a waiting pull request")
    await add(broker, name, b"now")
    assert [each.data for each in await waiting] == [b"now"]


async def is_waited_for(broker: Broker, name: str) -> bool:
    return bool((await broker.api(f"CONSUMER.INFO.{name}.reader"))["num_waiting"])


async def _pull(ctx: Context, name: str) -> Any:
    return await ctx.pull(name, "reader", wait_s=30)


async def test_bytes_are_bounded_but_one_message_always_comes(broker: Broker) -> None:
    ctx, name = await consumer_of(broker, bytes(5_000), bytes(300), bytes(300), bytes(900))

    sizes = []
    while found := await ctx.pull(name, "reader", size_bytes=1_000):
        sizes.append([len(each.data) for each in found])

    assert sum(map(len, sizes)) == 4
    assert sizes[0] == [5_000]
    assert all(sum(each) <= 1_000 for each in sizes[1:])


async def test_a_consumer_that_does_not_exist_is_told_apart(broker: Broker) -> None:
    ctx, name = await consumer_of(broker)
    await broker.api(f"CONSUMER.DELETE.{name}.reader")

    with pytest.raises(NoAnswer, match="no responders"):
        await ctx.pull(name, "reader", wait_s=1)


async def test_a_consumer_that_is_deleted_meanwhile_ends_the_wait(broker: Broker) -> None:
    ctx, name = await consumer_of(broker)
    waiting = asyncio.create_task(_pull(ctx, name))
    await eventually(lambda: is_waited_for(broker, name), "a waiting pull request")
    await broker.api(f"CONSUMER.DELETE.{name}.reader")

    with pytest.raises(RequestFailed, match="Consumer Deleted"):
        await waiting


@pytest.mark.parametrize(
    "bounds", [{"messages": 0}, {"size_bytes": 0}, {"wait_s": 61}, {"wait_s": -1}]
)
async def test_bounds_are_checked_before_anything_is_sent(
    broker: Broker, bounds: dict[str, Any]
) -> None:
    ctx = Context(Scope("poll", None, broker, {}, get_logger("test")))
    with pytest.raises(ValueError, match="pull takes"):
        await ctx.pull("NONE", "reader", **bounds)
