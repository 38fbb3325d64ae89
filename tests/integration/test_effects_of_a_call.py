"""Effects of `ctx` that were not awaited to their end fail the call, and are named."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from runtime import Context, Event, Publication
from runtime.broker.connection import Broker
from runtime.errors import ConfigError, RequestFailed
from tests.support.host import (
    Journal,
    fresh,
    letters_of,
    running_host,
    start_host,
    wait_for_letters,
    wait_until_settled,
)
from tests.support.servers import NatsServer

EFFECTS: dict[str, Callable[[Context], Any]] = {
    "publish": lambda ctx: ctx.publish("nowhere", b"", msg_id="1"),
    "publish_many": lambda ctx: ctx.publish_many([Publication("nowhere", b"", "1")]),
    "publish_core": lambda ctx: ctx.publish_core("nowhere", b""),
    "request": lambda ctx: ctx.request("nowhere", b""),
    "request_many": lambda ctx: ctx.request_many("nowhere"),
    "in_progress": lambda ctx: ctx.in_progress(),
}
LAST = {"attempts": 1}


def _spec(stream: str, **spec: Any) -> dict[str, Any]:
    return {"handler": "on_event", "consumer": {"stream": stream}, "retry": LAST, **spec}


async def _reason_of_failure(broker: Broker, url: str, act: Callable[..., Any], **spec: Any) -> str:
    """Why one message of a function became a dead letter."""
    name, stream = fresh("effect"), fresh("EFFECT")
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(url, {name: _spec(stream, **spec)}, {name: act}, streams=streams):
        await broker.publish(f"{stream}.a", b"x")
        [letter] = await wait_for_letters(broker, name)
    gc.collect()  # Python's warning about an un-awaited coroutine fails a test.
    assert letter.error_type == "EffectNotAwaited"
    return letter.reason


@pytest.mark.parametrize("effect", EFFECTS)
async def test_an_effect_without_await_fails_the_call_and_is_named(
    broker: Broker, nats_server: NatsServer, effect: str
) -> None:
    async def act(ctx: Context, event: Any) -> None:
        EFFECTS[effect](ctx)

    reason = await _reason_of_failure(broker, nats_server.url, act)

    assert reason.startswith(f"ctx.{effect} at tests/integration/test_effects_of_a_call.py:")
    assert reason.endswith(" was not awaited when the function returned")


async def test_an_effect_of_a_plain_function_fails_its_call(
    broker: Broker, nats_server: NatsServer
) -> None:
    def act(ctx: Context, event: Any) -> None:
        ctx.publish("nowhere", b"")  # type: ignore[unused-coroutine]

    reason = await _reason_of_failure(broker, nats_server.url, act, handler="on_event_in_thread")

    assert "was not awaited" in reason


async def test_an_effect_of_a_batch_fails_the_batch(
    broker: Broker, nats_server: NatsServer
) -> None:
    async def act(ctx: Context, batch: Any) -> None:
        for number in range(200):
            await ctx.publish_core("nowhere", b"")
            if number % 50 == 0:
                ctx.publish_core("nowhere", b"")  # type: ignore[unused-coroutine]

    reason = await _reason_of_failure(broker, nats_server.url, act, handler="on_batch")

    assert reason.endswith(" and 3 more had not ended when the function returned")


async def test_an_effect_that_is_under_way_in_a_task_fails_the_call(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream, silent = fresh("effect"), fresh("EFFECT"), fresh("silent")
    subscription = await broker.subscribe(silent, lambda _: None)
    await broker.flush(5)
    tasks = []

    async def act(ctx: Context, event: Any) -> None:
        tasks.append(asyncio.create_task(ctx.request_many(silent, wait_s=30)))

    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: _spec(stream)}, {name: act}, streams=streams):
        await broker.publish(f"{stream}.a", b"x")
        [letter] = await wait_for_letters(broker, name)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await subscription.unsubscribe()

    assert letter.reason.startswith("ctx.request_many at ")
    assert letter.reason.endswith(" had not ended when the function returned")


async def _gather(ctx: Context) -> None:
    await asyncio.gather(ctx.publish_core("a", b""), ctx.publish_core("a", b""))


async def _await_a_task(ctx: Context) -> None:
    task = asyncio.create_task(ctx.publish_core("a", b""))
    await task


async def _group(ctx: Context) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.publish_core("a", b""))


async def _cancel(ctx: Context) -> None:
    task = asyncio.create_task(ctx.request_many("a", wait_s=30))
    await asyncio.sleep(0)
    task.cancel()  # Not awaited: the task ends a few turns later.


async def _time_out(ctx: Context) -> None:
    try:
        await asyncio.wait_for(ctx.request_many("a", wait_s=30), 0.01)
    except TimeoutError:
        return


async def _swallow(ctx: Context) -> None:
    try:
        await ctx.request("nobody.listens", b"")
    except Exception:  # noqa: BLE001 - what a function may do
        return


@pytest.mark.parametrize("way", [_gather, _await_a_task, _group, _cancel, _time_out, _swallow])
async def test_effects_that_have_ended_are_fine_whoever_awaited_them(
    broker: Broker, nats_server: NatsServer, way: Callable[[Context], Awaitable[None]]
) -> None:
    name, stream, journal = fresh("effect"), fresh("EFFECT"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        await way(ctx)
        journal.add("done")

    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: _spec(stream)}, {name: act}, streams=streams):
        await broker.publish(f"{stream}.a", b"x")
        await journal.wait(1)
        await wait_until_settled(broker, stream, name)
        assert await letters_of(broker, name) == []


async def test_a_call_that_fails_anyway_keeps_its_own_reason(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, stream = fresh("effect"), fresh("EFFECT")

    async def act(ctx: Context, event: Any) -> None:
        ctx.publish("nowhere", b"")  # type: ignore[unused-coroutine]
        raise ValueError("its own")

    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: _spec(stream)}, {name: act}, streams=streams):
        await broker.publish(f"{stream}.a", b"x")
        [letter] = await wait_for_letters(broker, name)
    gc.collect()

    assert letter.reason == "its own"


async def test_an_endpoint_s_caller_gets_an_error(broker: Broker, nats_server: NatsServer) -> None:
    name = fresh("effect")

    async def act(ctx: Context, event: Any) -> bytes:
        ctx.publish("nowhere", b"", msg_id="1")  # type: ignore[unused-coroutine]
        return b"done"

    spec = {"handler": "on_raw_request", "endpoint": {"subject": f"{name}.call"}}
    async with running_host(nats_server.url, {name: spec}, {name: act}):
        with pytest.raises(RequestFailed) as refused:
            await broker.request(f"{name}.call", b"")

    assert refused.value.code == 500


async def test_a_tick_whose_effect_was_not_awaited_is_tried_again(
    broker: Broker, nats_server: NatsServer
) -> None:
    name, journal = fresh("effect"), Journal()

    async def act(ctx: Context) -> None:
        journal.add(ctx.attempt)
        if ctx.attempt == 1:
            ctx.publish("nowhere", b"")  # type: ignore[unused-coroutine]

    spec = {
        "handler": "on_tick",
        "schedule": {"cron": "0 0 1 1 *", "at_start": True},
        "retry": {"attempts": 2, "delay": "10ms", "jitter": 0},
    }
    async with running_host(nats_server.url, {name: spec}, {name: act}):
        await journal.wait(2)

    assert journal.entries == [1, 2]


async def start(ctx: Context) -> None:
    """The hook of `on_hooked_request`."""
    ctx.publish("nowhere", b"", msg_id="1")  # type: ignore[unused-coroutine]


async def on_hooked_request(event: Event[bytes], ctx: Context) -> bytes:
    return event.data


async def test_a_start_hook_s_effect_that_was_not_awaited_keeps_the_host_from_starting(
    nats_server: NatsServer,
) -> None:
    name = fresh("hook")
    spec = {"handler": f"{__name__}:on_hooked_request", "endpoint": {"subject": f"{name}.call"}}

    with pytest.raises(ConfigError, match="EffectNotAwaited"):
        await start_host(nats_server.url, {name: spec})
    gc.collect()
