import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from runtime import Context, Event, Message
from runtime.broker.connection import Broker
from runtime.broker.dead_letters import DeadLetter, DeadLetters
from runtime.broker.function_consumers import check_pausing
from runtime.broker.streams import ensure, plan
from runtime.errors import ConfigError
from tests.support.command import SKEWED, runtime
from tests.support.host import Journal, consumer, fresh, make_manifest, running_host
from tests.support.servers import NatsServer


class PausableFunction:
    """A pausable function and a second function on one stream, which shows what was available."""

    def __init__(self) -> None:
        self.stream, self.name, self.witness = fresh("JOBS"), fresh("work"), fresh("witness")
        self.calls, self.seen = Journal(), Journal()
        spec = {"handler": "on_event", "consumer": {"stream": self.stream}}
        self.functions: dict[str, Any] = {self.name: spec, self.witness: spec}
        self.streams = {self.stream: {"subjects": [f"{self.stream}.>"]}}

    def does(self) -> dict[str, Any]:
        async def work(ctx: Context, event: Event[bytes]) -> None:
            self.calls.add(event.raw)

        async def watch(ctx: Context, event: Event[bytes]) -> None:
            self.seen.add(event.raw)

        return {self.name: work, self.witness: watch}


async def test_a_paused_function_gets_nothing_on_any_host_until_it_is_resumed(
    nats_server: NatsServer, broker: Broker
) -> None:
    scene, url = PausableFunction(), nats_server.url

    async with running_host(url, scene.functions, scene.does(), streams=scene.streams) as first:
        done = await runtime(url, "pause", scene.name)
        async with running_host(
            url, scene.functions, scene.does(), streams=scene.streams
        ) as second:
            await broker.publish(f"{scene.stream}.a", b"one")
            await broker.publish(f"{scene.stream}.a", b"two")
            await scene.seen.wait(2)
            held = await consumer(broker, scene.stream, scene.name)
            ready = [await host.probes.check_functions() for host in (first, second)]
            assert scene.calls.entries == []
            listed = await runtime(url, "ls")
            resumed = await runtime(url, "resume", scene.name)
            await scene.calls.wait(2)

    assert (done.code, done.err) == (0, "")
    consumers = f"({scene.stream}/{scene.name}, MAILBOX/{scene.name})"
    assert done.out == f"{scene.name} paused until resumed {consumers}\n"
    assert (held["paused"], held["num_pending"], held["num_ack_pending"]) == (True, 2, 0)
    assert ready == [None, None]
    row = next(row for row in listed.rows if row[0] == scene.name)
    assert (row[2], row[3], row[7:9]) == ("2", "0", ["0", "0"])
    assert "paused until resumed" in " ".join(row)
    assert resumed.out == f"{scene.name} resumed {consumers}\n"
    assert sorted(scene.calls.entries) == [b"one", b"two"]


async def test_a_redriven_message_waits_too(nats_server: NatsServer, broker: Broker) -> None:
    scene, url = PausableFunction(), nats_server.url
    async with running_host(url, scene.functions, scene.does(), streams=scene.streams):
        for name in (scene.name, scene.witness):
            message = Message("a", b"again", {}, "", scene.stream, 7, 5, 1_790_000_000_000_000_000)
            await DeadLetters(broker).store(DeadLetter(name, message, "BAD"))
        await runtime(url, "pause", scene.name)
        await runtime(url, "dlq", "redrive", "--code", "BAD")
        await scene.seen.wait(1)
        assert scene.calls.entries == []
        await runtime(url, "resume", scene.name)
        assert await scene.calls.wait(1) == [b"again"]


@pytest.mark.parametrize("ahead_s", [0, -3600], ids=["right", "an hour behind"])
async def test_a_pause_may_end_by_itself_by_the_servers_clock(
    nats_server: NatsServer, broker: Broker, tmp_path: Path, ahead_s: int
) -> None:
    scene, url = PausableFunction(), nats_server.url
    clock = tmp_path / "clock"
    clock.write_text(str(ahead_s))
    async with running_host(url, scene.functions, scene.does(), streams=scene.streams):
        pause = ("pause", scene.name, "--for", "2s")
        done = await runtime(url, *pause, program=SKEWED, CLOCK_FILE=str(clock))
        await broker.publish(f"{scene.stream}.a", b"one")
        await scene.seen.wait(1)
        was = list(scene.calls.entries)
        await scene.calls.wait(1)

    assert done.out.startswith(f"{scene.name} paused until 20")
    assert was == []


async def test_a_host_that_changes_a_paused_consumer_leaves_it_paused(
    nats_server: NatsServer, broker: Broker
) -> None:
    scene = PausableFunction()
    manifest = make_manifest(scene.functions, scene.streams)
    await ensure(broker, manifest)
    await runtime(nats_server.url, "pause", scene.name)
    assert await plan(broker, manifest) == []
    spec = {"handler": "on_event", "consumer": {"stream": scene.stream, "ack_wait": "77s"}}

    await ensure(broker, make_manifest({scene.name: spec}, scene.streams))

    for stream in (scene.stream, "MAILBOX"):
        found = await consumer(broker, stream, scene.name)
        assert (found["paused"], found["config"]["ack_wait"]) == (True, 77_000_000_000)


async def test_a_paused_consumer_goes_on_sending_heartbeats_to_pull_loops(
    nats_server: NatsServer, broker: Broker
) -> None:
    scene = PausableFunction()
    await ensure(broker, make_manifest(scene.functions, scene.streams))
    await runtime(nats_server.url, "pause", scene.name)
    await broker.publish(f"{scene.stream}.a", b"one")
    arrived: asyncio.Queue[Message] = asyncio.Queue()
    inbox = f"_INBOX.{secrets.token_hex(11)}"
    subscription = await broker.subscribe(inbox, arrived.put_nowait)
    request = {"batch": 1, "expires": 2_000_000_000, "idle_heartbeat": 500_000_000}

    pull = f"$JS.API.CONSUMER.MSG.NEXT.{scene.stream}.{scene.name}"
    await broker.send(pull, json.dumps(request).encode(), inbox)
    statuses = [(await asyncio.wait_for(arrived.get(), 10)).headers["Status"] for _ in range(2)]
    await subscription.unsubscribe()

    assert statuses == ["100", "100"]


async def test_a_scheduled_function_is_paused_with_its_ticks(nats_server: NatsServer) -> None:
    name, witness, ticks, seen = fresh("tick"), fresh("witness"), Journal(), Journal()

    async def tick(ctx: Context) -> None:
        ticks.add(1)

    async def watch(ctx: Context) -> None:
        seen.add(1)

    spec = {"handler": "on_tick", "schedule": {"every": "1s"}}
    functions = {name: spec, witness: spec}
    async with running_host(nats_server.url, functions, {name: tick, witness: watch}):
        await ticks.wait(1)
        done = await runtime(nats_server.url, "pause", name)
        await seen.wait(len(seen.entries) + 1)  # A delivered message is still processed.
        before = len(ticks.entries)
        await seen.wait(len(seen.entries) + 2)
        during = len(ticks.entries)
        await runtime(nats_server.url, "resume", name)
        await ticks.wait(during + 1)

    consumers = f"(SCHEDULES/schedule-{name}, MAILBOX/{name})"
    assert done.out == f"{name} paused until resumed {consumers}\n"
    assert during == before


async def test_one_unknown_name_pauses_nothing_and_names_those_that_are_known(
    nats_server: NatsServer, broker: Broker
) -> None:
    scene = PausableFunction()
    await ensure(broker, make_manifest(scene.functions, scene.streams))

    done = await runtime(nats_server.url, "pause", scene.name, "nobody")
    unneeded = await runtime(nats_server.url, "resume", scene.name)

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("function nobody: it has no consumer on this server; functions ")
    assert scene.witness in done.err
    assert not (await consumer(broker, scene.stream, scene.name)).get("paused")
    assert unneeded.code == 0
    assert " was not paused " in unneeded.out


def test_a_server_older_than_pausing_is_refused_with_its_version() -> None:
    check_pausing((2, 11, 0))

    with pytest.raises(ConfigError, match=r"nats-server 2\.10\.25 cannot pause a consumer"):
        check_pausing((2, 10, 25))
