"""A whole host: what clients and operators see, and which faults it survives."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runtime import Context, Retry
from runtime.broker.connection import Broker
from runtime.errors import ConfigError, Unavailable
from runtime.host import Host
from runtime.observe.metrics import Metrics
from tests.support import workload
from tests.support.host import (
    QUICK,
    Journal,
    consumer,
    eventually,
    fresh,
    letters_of,
    running_host,
    start_host,
    wait_until_settled,
)
from tests.support.servers import NatsServer, PostgresServer
from tests.support.versions import delete_consumer
from tests.support.workload import behaviours


def _stream(name: str) -> dict[str, Any]:
    return {name: {"subjects": [f"{name}.>"]}}


@pytest.fixture
async def own_server(server_directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


async def test_every_function_shows_in_nats_micro(
    broker: Broker, nats_server: NatsServer, nats_cli: Callable[..., str]
) -> None:
    stream, work, ask, tick = fresh("S"), fresh("work"), fresh("ask"), fresh("tick")

    async def act(*_: object) -> None:
        return None

    functions = {
        work: {"handler": "on_event", "consumer": {"stream": stream, "durable": f"{work}-workers"}},
        ask: {"handler": "on_request", "endpoint": {"subject": f"{ask}.x"}},
        tick: {"handler": "on_tick", "schedule": {"every": "1h"}},
    }
    does = dict.fromkeys(functions, act)
    async with running_host(nats_server.url, functions, does, streams=_stream(stream)):
        await broker.publish(f"{stream}.a", b"x")
        await wait_until_settled(broker, stream, f"{work}-workers")
        url = nats_server.url
        listed = await asyncio.to_thread(nats_cli, url, "micro", "ls", "--json")
        shown = json.loads(await asyncio.to_thread(nats_cli, url, "micro", "info", work, "--json"))
        stats = await broker.request(f"$SRV.STATS.{work}", b"")

    assert {work, ask, tick} <= {service["name"] for service in json.loads(listed)}
    metadata = _find(shown, "endpoints")[0]["metadata"]
    assert metadata["stream"] == stream
    assert metadata["durable"] == f"{work}-workers"
    assert len(metadata["code_version"]) == 12
    assert {"lag", "ack_pending", "redelivered", "dead_letters"} <= metadata.keys()
    assert all(isinstance(value, str) for value in metadata.values())
    [counted] = json.loads(stats.data)["endpoints"]
    assert (counted["num_requests"], counted["num_errors"]) == (1, 0)
    assert counted["data"]["outcomes"]["acked"] == 1


def _find(document: Any, key: str) -> Any:
    """The first value of this key at any depth, since versions of the command line differ."""
    if isinstance(document, dict) and key in document:
        return document[key]
    inner = document.values() if isinstance(document, dict) else document
    found = [_find(each, key) for each in inner if isinstance(each, dict | list)]
    return next((each for each in found if each is not None), None)


async def test_metrics_tell_how_far_behind_a_function_is(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.lag.EVERY_S", 0.1)
    stream, work, release, metrics = fresh("S"), fresh("work"), asyncio.Event(), Metrics("0.0.0")

    async def act(*_: object) -> None:
        await release.wait()

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "concurrency": 1}
    async with running_host(
        nats_server.url, {work: spec}, {work: act}, streams=_stream(stream), metrics=metrics
    ):
        for _ in range(5):
            await broker.publish(f"{stream}.a", b"x")
        shown = metrics.function(work)

        async def behind() -> bool:
            return (shown.consumer_pending, shown.consumer_ack_pending) == (4, 1)

        await eventually(behind, "four behind and one in work")
        in_flight = shown.in_flight
        release.set()
        await wait_until_settled(broker, stream, work)

    assert in_flight == 1
    assert shown.in_flight == 0


async def test_probes_pass_while_all_is_well_and_name_what_is_not(
    own_server: NatsServer, postgres_dsn: str
) -> None:
    stream, work = fresh("S"), fresh("work")

    async def act(*_: object) -> None:
        return None

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "uses": ["postgres"]}
    async with running_host(
        own_server.url,
        {work: spec},
        {work: act},
        streams=_stream(stream),
        database_url=postgres_dsn,
    ) as host:
        well = {name: await probe() for name, probe in host.probes.by_name().items()}
        own_server.pause()
        with pytest.raises(Unavailable):
            await host.probes.check_nats()
        own_server.resume()
        broker = host._broker
        assert broker is not None
        await eventually(lambda: _answers(host), "JetStream")

    assert well == dict.fromkeys(("nats", "functions", "postgres", "streams", "reload"))


async def _answers(host: Host) -> bool:
    try:
        return await host.probes.check_nats() is None
    except Unavailable:
        return False


async def test_draining_finishes_what_is_here_and_takes_nothing_new(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work, journal, release = fresh("S"), fresh("work"), Journal(), asyncio.Event()

    async def act(ctx: Context, event: Any) -> None:
        journal.add((event.sequence, ctx.attempt))
        await release.wait()

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "concurrency": 2}
    behaviours[work] = act
    host = await start_host(nats_server.url, {work: spec}, streams=_stream(stream))
    for _ in range(10):
        await broker.publish(f"{stream}.a", b"x")
    await journal.wait(2)
    draining = asyncio.create_task(host.drain(10))
    await eventually(lambda: _stopped(host), "an end of pulling")
    release.set()
    await draining
    done = list(journal.entries)

    found = await consumer(broker, stream, work)
    assert found["num_ack_pending"] == 0
    assert found["ack_floor"]["stream_seq"] == len(done) < 10
    assert found["num_redelivered"] == 0

    async with running_host(nats_server.url, {work: spec}, streams=_stream(stream)):
        await journal.wait(10)
        await wait_until_settled(broker, stream, work)
    assert sorted(journal.entries) == [(number, 1) for number in range(1, 11)]


async def _stopped(host: Host) -> bool:
    [binding] = [each for each in host.bindings if hasattr(each, "pullers")]
    return bool(binding.pullers.is_stopped)


@pytest.mark.parametrize("handler", ["on_event", "on_batch"])
async def test_what_a_drain_does_not_finish_comes_again_with_no_attempt_used_up(
    broker: Broker, nats_server: NatsServer, handler: str
) -> None:
    stream, work, journal = fresh("S"), fresh("work"), Journal()
    blocked = True

    async def act(ctx: Context, given: Any) -> None:
        for event in [given] if handler == "on_event" else given:
            journal.add((event.sequence, event.stored_at_ns, event.attempt, event.raw))
        if blocked:
            await asyncio.Event().wait()

    spec = {"handler": handler, "consumer": {"stream": stream}, "retry": {**QUICK, "attempts": 1}}
    behaviours[work] = act
    for restarts in range(3):  # more than it has attempts
        host = await start_host(nats_server.url, {work: spec}, streams=_stream(stream))
        if not restarts:
            await broker.publish(f"{stream}.a", b"x")
        await journal.wait(restarts + 1)
        await host.drain(0.1)
    blocked = False
    async with running_host(nats_server.url, {work: spec}, streams=_stream(stream)):
        await journal.wait(4)
        await wait_until_settled(broker, stream, work)
        await wait_until_settled(broker, "MAILBOX", work)

    assert len(set(journal.entries)) == 1
    assert journal.entries[0][2] == 1
    assert not await letters_of(broker, work)


async def test_a_deleted_consumer_is_made_again_while_serving(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        journal.add(event.raw)

    spec = {"handler": "on_event", "consumer": {"stream": stream, "deliver": "new"}}
    async with running_host(
        nats_server.url, {work: spec}, {work: act}, streams=_stream(stream)
    ) as host:
        await broker.publish(f"{stream}.a", b"first")
        await journal.wait(1)
        await wait_until_settled(broker, stream, work)
        await delete_consumer(broker, stream, work)
        await delete_consumer(broker, "MAILBOX", work)

        async def again() -> bool:
            names = [await broker.api(f"CONSUMER.NAMES.{each}") for each in (stream, "MAILBOX")]
            return all(work in (found["consumers"] or []) for found in names)

        await eventually(again, "both consumers")
        await eventually(lambda: _flowing(host), "a flowing host")
        await broker.publish(f"{stream}.a", b"second")
        await journal.wait(2)

    assert journal.entries == [b"first", b"second"]


async def _flowing(host: Host) -> bool:
    return await host.probes.check_functions() is None


async def test_a_killed_server_loses_nothing_of_a_serving_host(own_server: NatsServer) -> None:
    stream, work, ask, journal = fresh("S"), fresh("work"), fresh("ask"), Journal()
    metrics = Metrics("0.0.0")

    async def act(ctx: Context, event: Any) -> None:
        journal.add(event.sequence)

    async def answer(ctx: Context, event: Any) -> Any:
        return {"number": event.data.number}

    functions = {
        work: {"handler": "on_event", "consumer": {"stream": stream, "ack_wait": "1s"}},
        ask: {"handler": "on_request", "endpoint": {"subject": f"{ask}.x"}},
    }
    broker = await Broker.connect(own_server.url, name="test")
    async with running_host(
        own_server.url,
        functions,
        {work: act, ask: answer},
        streams=_stream(stream),
        metrics=metrics,
    ) as host:
        total = 0
        for _ in range(3):
            for _ in range(50):
                await broker.publish(f"{stream}.a", b"x")
                total += 1
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.start)
            await eventually(lambda: _up(broker), "the test's connection")
        await wait_until_settled(broker, stream, work)
        await eventually(lambda: _flowing(host), "a flowing host")
        reply = await broker.request(f"{ask}.x", b'{"number": 7}')
    await broker.close()

    assert set(journal.entries) == set(range(1, total + 1))
    assert json.loads(reply.data) == {"number": 7}
    assert metrics.reconnects >= 3


async def _up(broker: Broker) -> bool:
    try:
        await broker.ping(0.5)
    except Unavailable:
        return False
    return True


@pytest.mark.parametrize("handler", ["on_event", "on_batch"])
async def test_an_outage_of_nats_uses_up_no_attempt(own_server: NatsServer, handler: str) -> None:
    stream, work, journal, go = fresh("S"), fresh("work"), Journal(), asyncio.Event()

    async def act(ctx: Context, given: Any) -> None:
        journal.add(ctx.attempt)
        await go.wait()
        await ctx.publish(f"{stream}.b.done", b"done", msg_id=f"done-{work}")

    broker = await Broker.connect(own_server.url, name="test")
    spec = {
        "handler": handler,
        "consumer": {"stream": stream, "filter_subjects": [f"{stream}.a"]},
        "retry": {**QUICK, "attempts": 1},
    }
    async with running_host(own_server.url, {work: spec}, {work: act}, streams=_stream(stream)):
        await broker.publish(f"{stream}.a", b"x")
        await journal.wait(1)
        await asyncio.to_thread(own_server.kill)
        go.set()
        await journal.wait(1)
        await asyncio.to_thread(own_server.start)
        await eventually(lambda: _up(broker), "the test's connection")
        await wait_until_settled(broker, stream, work)
        letters = await letters_of(broker, work)
        found = await broker.api(f"STREAM.INFO.{stream}")
    await broker.close()

    assert set(journal.entries) == {1}
    assert not letters
    assert found["state"]["messages"] == 2


@pytest.fixture
def own_postgres(server_directory: Path) -> Any:
    server = PostgresServer(server_directory / "postgres")
    yield server
    server.stop()


@pytest.mark.parametrize("handler", ["on_event", "on_batch"])
async def test_an_outage_of_postgres_uses_up_no_attempt(
    broker: Broker, nats_server: NatsServer, own_postgres: PostgresServer, handler: str
) -> None:
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def act(ctx: Context, given: Any) -> None:
        journal.add(ctx.attempt)
        await ctx.postgres.execute("INSERT INTO done VALUES ($1)", work)

    setup = await asyncpg.connect(own_postgres.dsn())
    await setup.execute("CREATE TABLE done (name text)")
    await setup.close()
    spec = {
        "handler": handler,
        "consumer": {"stream": stream},
        "uses": ["postgres"],
        "retry": {**QUICK, "attempts": 1},
    }
    async with running_host(
        nats_server.url,
        {work: spec},
        {work: act},
        streams=_stream(stream),
        database_url=own_postgres.dsn(),
    ):
        await asyncio.to_thread(own_postgres.kill)
        await broker.publish(f"{stream}.a", b"x")
        await journal.wait(1)
        await asyncio.to_thread(own_postgres.start)
        await wait_until_settled(broker, stream, work)

    check = await asyncpg.connect(own_postgres.dsn())
    rows = await check.fetchval("SELECT count(*) FROM done")
    await check.close()
    assert set(journal.entries) == {1}
    assert rows == 1
    assert not await letters_of(broker, work)


async def test_functions_without_a_missing_server_go_on(
    broker: Broker, nats_server: NatsServer
) -> None:
    """A call that waits for an endpoint without a host fails as usual, and delays no other call."""
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        journal.add((event.raw, ctx.attempt))
        if event.raw == b"ask":
            await ctx.request("nobody.is.here", b"", timeout_s=0.5)

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "retry": QUICK, "concurrency": 1}
    async with running_host(nats_server.url, {work: spec}, {work: act}, streams=_stream(stream)):
        await broker.publish(f"{stream}.a", b"ask")
        await broker.publish(f"{stream}.a", b"other")
        await journal.wait(4)
        await wait_until_settled(broker, stream, work)

    assert [attempt for raw, attempt in journal.entries if raw == b"ask"] == [1, 2, 3]
    assert [letter.error_type for letter in await letters_of(broker, work)] == ["NoAnswer"]


async def test_threads_that_hang_do_not_hold_up_another_function(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, stuck, fine = fresh("S"), fresh("stuck"), fresh("fine")
    journal, release = Journal(), threading.Event()

    def hang(ctx: Context, event: Any) -> None:
        journal.add("stuck")
        release.wait(30)

    def work(ctx: Context, event: Any) -> None:
        journal.add("fine")

    functions = {
        stuck: {
            "handler": "on_event_in_thread",
            "consumer": {"stream": stream, "filter_subjects": [f"{stream}.stuck"]},
            "concurrency": 64,
        },
        fine: {
            "handler": "on_event_in_thread",
            "consumer": {"stream": stream, "filter_subjects": [f"{stream}.fine"]},
        },
    }
    async with running_host(
        nats_server.url, functions, {stuck: hang, fine: work}, streams=_stream(stream)
    ):
        for _ in range(64):
            await broker.publish(f"{stream}.stuck", b"x")
        await journal.wait(64)
        await broker.publish(f"{stream}.fine", b"x")
        await journal.wait(65)
        release.set()

    assert journal.entries[-1] == "fine"


async def test_parked_messages_do_not_starve_the_stream(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.binding.settlement.PARK_FROM_S", 0.2)
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def act(ctx: Context, event: Any) -> None:
        if event.raw == b"bad":
            raise Retry("away", delay_s=0.3)
        journal.add(event.raw)

    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream},
        "concurrency": 2,
        "retry": {"attempts": 50},
    }
    async with running_host(nats_server.url, {work: spec}, {work: act}, streams=_stream(stream)):
        for _ in range(100):
            await broker.publish(f"{stream}.a", b"bad")
        for _ in range(50):
            await broker.publish(f"{stream}.a", b"good")
        await journal.wait(50)


async def test_a_start_hook_that_fails_says_which_function_and_leaves_nothing_running(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(ctx: Context) -> None:
        raise OSError("no such file: key.pem")

    monkeypatch.setattr(workload, "start", start, raising=False)
    stream, work = fresh("S"), fresh("work")
    before = asyncio.all_tasks()

    with pytest.raises(ConfigError, match=f"function {work}.*OSError at test_host.py"):
        await start_host(
            nats_server.url,
            {work: {"handler": "on_event", "consumer": {"stream": stream}}},
            streams=_stream(stream),
        )

    assert not {task for task in asyncio.all_tasks() - before if "nats" not in str(task)}


async def test_a_stop_hook_that_fails_keeps_no_other_from_running(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    async def stop(ctx: Context) -> None:
        stopped.append(ctx.function)
        raise OSError("broken")

    monkeypatch.setattr(workload, "stop", stop, raising=False)
    stream, first, second = fresh("S"), fresh("work"), fresh("work")
    spec = {"handler": "on_event", "consumer": {"stream": stream}}

    async with running_host(nats_server.url, {first: spec, second: spec}, streams=_stream(stream)):
        pass

    assert sorted(stopped) == sorted([first, second])
