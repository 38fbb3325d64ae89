"""Versions of a function that are swapped while the host runs, with messages in its hands."""

import asyncio
import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest

from runtime.broker.connection import Broker
from runtime.errors import Reject
from runtime.host import Host
from tests.support.host import (
    Journal,
    consumer,
    eventually,
    wait_until_settled,
)
from tests.support.reloading import Gate, adding, consuming, names, noting, publish, serve
from tests.support.servers import NatsServer


async def test_held_messages_go_to_the_new_version_and_a_running_call_ends_with_the_old(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal, gate = Journal(), Gate()
    project = consuming(stream, work, concurrency=1, fair_by={"token": 1})

    async def slow(ctx: Any, event: Any) -> None:
        await gate(event, ctx)
        journal.add(("old", event.data))

    async with serve(nats_server, project, does=slow) as host:
        binding = host.bindings[0]
        await publish(broker, stream, 1, 2, 3)
        await gate.begun.wait()
        await eventually(lambda: _holds(host, work, 3), "three held messages")
        change = await project.save(host, work, "new", handler=noting(journal.add, "new"))
        gate.go_on.set()
        entries = await journal.wait(3)
        await wait_until_settled(broker, stream, work)
        found = await consumer(broker, stream, work)
        assert host.bindings[0] is binding

    assert (change.action, change.to_version, change.error) == ("swapped", "new", None)
    assert entries == [("old", b"1"), ("new", b"2"), ("new", b"3")]
    assert found["num_redelivered"] == 0
    assert found["delivered"]["consumer_seq"] == 3


async def _holds(host: Host, work: str, count: int) -> bool:
    binding: Any = host.bindings[0]
    return bool(binding.buffer.count() == count)


async def test_start_runs_before_the_swap_and_stop_after_the_last_call_of_the_old_version(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal, gate = Journal(), Gate()
    project = consuming(stream, work)

    async def background() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            journal.add("old task cancelled")

    async def start_old(ctx: Any) -> dict[str, int]:
        asyncio.create_task(background())  # noqa: RUF006 - the version is its owner
        return {"calls": 5}

    async def start_new(ctx: Any) -> dict[str, int]:
        journal.add("new started")
        return {}

    async def call_old(event: Any, ctx: Any) -> None:
        await gate(event, ctx)
        journal.add("old call ended")

    async def call_new(event: Any, ctx: Any) -> None:
        journal.add(f"new called with {ctx.state}")

    old = {"handler": call_old, "start": start_old, "stop": lambda _: journal.add("old stopped")}
    new = {"handler": call_new, "start": start_new, "stop": None, "hand_over": dict}
    async with serve(nats_server, project, does=adding(journal, "first")) as host:
        await project.save(host, work, "old", **old)
        await publish(broker, stream, 1)
        await gate.begun.wait()
        await project.save(host, work, "new", **new)
        await publish(broker, stream, 2)
        await journal.wait(2)
        gate.go_on.set()
        entries = await journal.wait(5)

    assert entries == [
        "new started",
        "new called with {'calls': 5}",
        "old call ended",
        "old stopped",
        "old task cancelled",
    ]


async def test_another_concurrency_drains_the_binding_and_each_message_is_called_once(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal, gate = Journal(), Gate()
    project = consuming(stream, work, concurrency=1)

    async def slow(ctx: Any, event: Any) -> None:
        await gate(event, ctx)
        journal.add(event.data)

    async with serve(nats_server, project, does=slow) as host:
        binding = host.bindings[0]
        await publish(broker, stream, 1, 2, 3)
        await gate.begun.wait()
        project.declare(work, concurrency=2)
        reloading = asyncio.create_task(project.reload(host))
        await publish(broker, stream, 4)
        ready = await host.probes.check_functions()
        gate.go_on.set()
        [change] = (await reloading).values()
        entries = await journal.wait(4)
        await wait_until_settled(broker, stream, work)
        found = await consumer(broker, stream, work)
        assert host.bindings[0] is not binding

    assert change.action == "rebound"
    assert ready is None
    assert sorted(entries) == [b"1", b"2", b"3", b"4"]
    assert found["num_redelivered"] == 0


async def test_a_changed_retry_policy_changes_the_consumer_in_place(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work, retry={"attempts": 3})
    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        before = await consumer(broker, stream, work)
        project.declare(work, retry={"attempts": 7})
        [change] = (await project.reload(host)).values()
        after = await consumer(broker, stream, work)
        await publish(broker, stream, 1)
        await journal.wait(1)

    assert change.action == "swapped"
    assert [each["config"]["max_deliver"] for each in (before, after)] == [3, 7]
    assert before["created"] == after["created"]


async def test_functions_and_streams_are_added_and_removed_and_the_messages_stay(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    more, added = names()
    journal = Journal()
    project = consuming(stream, work)
    async with serve(nats_server, project, does=adding(journal, "first")) as host:
        project.streams[more] = {"subjects": [f"{more}.>"]}
        project.declare(added, handler="on_event", consumer={"stream": more})
        project.write(added, "1", handler=noting(journal.add, "added"))
        started = await project.reload(host)
        await publish(broker, more, 1)
        await journal.wait(1)
        project.write(work, "", stop=lambda _: journal.add("stopped"))
        await project.reload(host)
        project.remove(work)
        stopped = await project.reload(host)
        await publish(broker, stream, 2)
        served = set(host.functions)
        found = await consumer(broker, stream, work)

    assert started[added].action == "started"
    assert (stopped[work].action, stopped[work].to_version) == ("stopped", "")
    assert journal.entries == [("added", b"1"), "stopped"]
    assert served == {added}
    assert found["num_pending"] == 1


async def test_the_lease_of_an_ordered_function_outlasts_a_swap(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work, ordered_by={"token": 2})
    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        await publish(broker, stream, 1)
        await journal.wait(1)
        leader: Any = host.bindings[0]
        leads_before = leader.leads
        change = await project.save(host, work, "new", handler=noting(journal.add, "new"))
        leads_after = leader.leads
        await publish(broker, stream, 2)
        await journal.wait(2)
        project.declare(work, concurrency=4)
        [rebound] = (await project.reload(host)).values()
        await publish(broker, stream, 3)
        entries = await journal.wait(3)

    assert (leads_before, leads_after) == (True, True)
    assert (change.action, rebound.action) == ("swapped", "rebound")
    assert entries == [("old", b"1"), ("new", b"2"), ("new", b"3")]


async def test_a_plain_handler_takes_over_from_an_async_one(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work)

    def plain(event: Any, ctx: Any) -> None:
        journal.add(("plain", event.data))

    async with serve(nats_server, project, does=adding(journal, "async")) as host:
        change = await project.save(host, work, "plain", handler=plain, is_async=False)
        await publish(broker, stream, 1)
        entries = await journal.wait(1)

    assert change.action == "swapped"
    assert entries == [("plain", b"1")]


@pytest.mark.parametrize("ends", ["returns", "fails"])
@pytest.mark.parametrize("handler", ["on_event", "on_batch"])
async def test_an_old_version_is_collected_when_its_last_call_has_ended(
    nats_server: NatsServer, broker: Broker, handler: str, ends: str
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work, handler, retry={"attempts": 1})

    class Code:
        """Stands for the module of a version."""

        async def __call__(self, given: Any, ctx: Any) -> None:
            journal.add("old")
            if ends == "fails":
                raise ValueError("no")

    async with serve(nats_server, project, does=adding(journal, "first")) as host:
        code = Code()
        alive = weakref.ref(code)
        await project.save(host, work, "old", handler=code)
        del code
        await publish(broker, stream, 1)
        await journal.wait(1)
        await wait_until_settled(broker, stream, work)
        await project.save(host, work, "new", handler=noting(journal.add, "new"))
        await eventually(lambda: _is_gone(alive), "the end of the old version")


async def _is_gone(alive: "weakref.ref[Any]") -> bool:
    gc.collect()
    return alive() is None


async def test_five_hundred_versions_of_which_each_got_a_message_leave_only_the_newest(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work, concurrency=4)

    class Code:
        """Stands for the module of a version; each second call fails."""

        def __init__(self, number: int) -> None:
            self.number = number
            self.payload = bytes(100_000)

        def start(self, ctx: Any) -> "Code":
            return self

        def stop(self, ctx: Any) -> None: ...

        async def __call__(self, event: Any, ctx: Any) -> None:
            journal.add(ctx.state.number)
            if self.number % 2:
                raise Reject("ODD", "an odd number")

    async with serve(nats_server, project, does=adding(journal, "first")) as host:
        manifest, functions = project.manifest(), project.functions()
        alive: list[weakref.ref[Code]] = []
        for number in range(500):
            code = Code(number)
            alive.append(weakref.ref(code))
            version = replace(
                functions[work],
                code_version=str(number),
                handler=code,
                start=code.start,
                stop=code.stop,
            )
            [change] = await host.apply(manifest, {work: version}, {})
            assert change.action == "swapped"
            await broker.publish_core(f"{stream}.a", b"%d" % number)
            await journal.wait(number + 1)
        del code, version
        await wait_until_settled(broker, stream, work)
        await eventually(lambda: _are_gone(alive[:-1]), "the end of all old versions")

    assert journal.entries == list(range(500))


async def _are_gone(alive: "list[weakref.ref[Any]]") -> bool:
    gc.collect()
    return not any(each() is not None for each in alive)
