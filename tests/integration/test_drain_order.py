"""A host ends callers of endpoints before endpoints; one failure does not stop the others' end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from runtime import Context
from runtime.binding.schedule import ScheduleTicker
from runtime.broker.connection import Broker
from runtime.errors import ConfigError
from tests.support import workload
from tests.support.host import (
    Journal,
    consumer,
    fresh,
    letters_of,
    running_host,
    start_host,
)
from tests.support.servers import NatsServer

QUESTIONS = 20


async def _ask(ctx: Context, subject: str, journal: Journal) -> None:
    for _ in range(QUESTIONS):
        reply = await ctx.request(subject, b"{}", timeout_s=2)
        journal.add(reply.data)


async def _answer(ctx: Context, event: Any) -> str:
    return "here"


async def test_a_consumer_asks_an_endpoint_of_its_own_host_while_the_host_drains(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work, ask, watch = fresh("S"), fresh("work"), fresh("ask"), fresh("watch")
    journal, begun, draining = Journal(), asyncio.Event(), asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        begun.set()
        await draining.wait()
        await _ask(ctx, f"{ask}.x", journal)

    async def notice(ctx: Context) -> None:
        await ctx.stopping.wait()
        draining.set()

    functions = {
        work: {"handler": "on_event", "consumer": {"stream": stream}},
        ask: {"handler": "on_request", "endpoint": {"subject": f"{ask}.x"}},
        watch: {"handler": "run", "service": True},
    }
    does: dict[str, Callable[..., Any]] = {work: act, ask: _answer, watch: notice}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, functions, does, streams=streams):
        await broker.publish(f"{stream}.a", b"x")
        await begun.wait()

    assert journal.entries == [b'"here"'] * QUESTIONS
    found = await consumer(broker, stream, work)
    assert (found["num_pending"], found["num_ack_pending"], found["num_redelivered"]) == (0, 0, 0)
    assert found["delivered"]["consumer_seq"] == 1
    assert await letters_of(broker, work) == []


async def test_a_service_asks_endpoints_until_it_has_ended(nats_server: NatsServer) -> None:
    ask, serve, journal = fresh("ask"), fresh("serve"), Journal()

    async def run(ctx: Context) -> None:
        await ctx.stopping.wait()
        await _ask(ctx, f"{ask}.x", journal)

    functions = {
        ask: {"handler": "on_request", "endpoint": {"subject": f"{ask}.x"}},
        serve: {"handler": "run", "service": True},
    }
    async with running_host(nats_server.url, functions, {ask: _answer, serve: run}):
        pass

    assert journal.entries == [b'"here"'] * QUESTIONS


async def test_a_host_that_drains_is_not_ready(nats_server: NatsServer) -> None:
    serve, stopping, go = fresh("serve"), asyncio.Event(), asyncio.Event()

    async def run(ctx: Context) -> None:
        await ctx.stopping.wait()
        stopping.set()
        await go.wait()

    functions = {serve: {"handler": "run", "service": True}}
    async with running_host(nats_server.url, functions, {serve: run}) as host:
        draining = asyncio.create_task(host.drain(10))
        await stopping.wait()
        ready = await host.probes.check_functions()
        go.set()
        await draining

    assert ready == "DRAINING"


async def test_a_binding_whose_drain_fails_keeps_no_other_from_ending(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work, tick, journal = fresh("S"), fresh("work"), fresh("tick"), Journal()
    stopped: list[str] = []

    async def fail(self: ScheduleTicker, *_: object) -> None:
        raise ValueError("a defect")

    async def stop(ctx: Context) -> None:
        stopped.append(ctx.function)

    async def act(*_: object) -> None:
        journal.add("begun")
        await asyncio.sleep(0.2)
        journal.add("done")

    monkeypatch.setattr(workload, "stop", stop, raising=False)
    functions = {
        work: {"handler": "on_event", "consumer": {"stream": stream}},
        tick: {"handler": "on_tick", "schedule": {"every": "1h"}},
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(
        nats_server.url, functions, {work: act, tick: act}, streams=streams
    ) as host:
        await broker.publish(f"{stream}.a", b"x")
        await journal.wait(1)
        ticker = next(each for each in host.bindings if isinstance(each, ScheduleTicker))
        await ScheduleTicker.stop(ticker)  # or the broken methods would leave its task behind
        monkeypatch.setattr(ScheduleTicker, "drain", fail)
        monkeypatch.setattr(ScheduleTicker, "stop", fail)

    assert journal.entries == ["begun", "done"]
    assert sorted(stopped) == sorted([work, tick])


async def test_a_start_that_fails_ends_those_of_the_other_functions(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = fresh("work"), fresh("work")
    waiting, ended = asyncio.Event(), asyncio.Event()

    async def start(ctx: Context) -> None:
        if ctx.function == bad:
            await waiting.wait()
            raise ValueError("bad")
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(workload, "start", start, raising=False)
    spec = {"handler": "on_tick", "schedule": {"every": "1h"}}
    with pytest.raises(ConfigError, match=f"function {bad}"):
        await start_host(nats_server.url, {good: spec, bad: spec})

    assert ended.is_set()


async def test_a_start_that_does_not_end_is_ended_and_named(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(ctx: Context) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(workload, "start", start, raising=False)
    slow = fresh("work")
    spec = {"handler": "on_tick", "schedule": {"every": "1h"}, "start_timeout": "200ms"}
    with pytest.raises(ConfigError, match=r"took longer than 0\.2 s.*raise start_timeout"):
        await start_host(nats_server.url, {slow: spec})


async def test_a_stop_that_does_not_end_is_ended(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.deployments.hooks.STOP_LIMIT_S", 1.0)
    ended = asyncio.Event()

    async def stop(ctx: Context) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(workload, "stop", stop, raising=False)
    spec = {"handler": "on_tick", "schedule": {"every": "1h"}}
    functions = {fresh("work"): spec for _ in range(20)}
    async with running_host(nats_server.url, functions) as host:
        began_s = asyncio.get_running_loop().time()
        await host.drain(1)
        took_s = asyncio.get_running_loop().time() - began_s

    assert ended.is_set()
    # The stop hooks run together: one after the other, each could use its whole time limit.
    assert took_s < 15


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_whatever_a_start_raises_is_a_failed_start_and_does_not_end_the_loop(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    async def start(ctx: Context) -> None:
        raise raised

    monkeypatch.setattr(workload, "start", start, raising=False)
    spec = {"handler": "on_tick", "schedule": {"every": "1h"}}
    with pytest.raises(ConfigError, match=f"raised {raised.__name__}"):
        await start_host(nats_server.url, {fresh("work"): spec})


async def test_a_start_that_fails_shows_where_and_not_what_it_said(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(ctx: Context) -> None:
        raise OSError("no such user: pw-4711")

    monkeypatch.setattr(workload, "start", start, raising=False)
    spec = {"handler": "on_tick", "schedule": {"every": "1h"}}
    with pytest.raises(ConfigError, match=r"OSError at test_drain_order\.py:\d+") as failed:
        await start_host(nats_server.url, {fresh("work"): spec})

    assert "4711" not in str(failed.value)


async def test_a_service_that_raises_no_exception_is_started_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.binding.service.RESTART_FIRST_S", 0.01)
    journal = Journal()
    endings: list[BaseException] = [GeneratorExit(), KeyboardInterrupt(), SystemExit(3)]

    async def run(ctx: Context) -> None:
        journal.add("begun")
        if endings:
            raise endings.pop()
        await ctx.stopping.wait()

    serve = fresh("serve")
    functions = {serve: {"handler": "run", "service": True}}
    async with running_host(nats_server.url, functions, {serve: run}):
        await journal.wait(4)
