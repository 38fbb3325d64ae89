"""Versions of a function that are swapped while the host runs, with messages in its hands."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from runtime.broker.connection import Broker
from runtime.errors import Reject
from runtime.function_change import FunctionChange
from runtime.host import Host
from runtime.loader import LoadFailure
from tests.support.host import (
    DEADLINE_S,
    Journal,
    consumer,
    eventually,
    fresh,
    running_host,
    wait_until_settled,
)
from tests.support.reloading import Gate, Project, noting
from tests.support.servers import NatsServer


def _project(stream: str, work: str, handler: str = "on_event", **spec: Any) -> Project:
    stated = {"handler": handler, "consumer": {"stream": stream}, **spec}
    return Project({work: stated}, {stream: {"subjects": [f"{stream}.>"]}})


def _names() -> tuple[str, str]:
    return fresh("S"), fresh("work")


def _serve(server: NatsServer, project: Project, *, does: Any) -> Any:
    behaviours = dict.fromkeys(project.specs, does)
    return running_host(server.url, project.specs, behaviours, streams=project.streams)


def _adding(journal: Journal, what: str) -> Callable[..., Any]:
    async def act(ctx: Any, event: Any) -> None:
        journal.add((what, event.data))

    return act


async def _publish(broker: Broker, stream: str, *numbers: int) -> None:
    for number in numbers:
        await broker.publish(f"{stream}.a", b"%d" % number, msg_id=f"{stream}-{number}")


async def _error_of(host: Host) -> str | None:
    return await host.probes.check_reload()


async def test_held_messages_go_to_the_new_version_and_a_running_call_ends_with_the_old(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    journal, gate = Journal(), Gate()
    project = _project(stream, work, concurrency=1, fair_by={"token": 1})

    async def slow(ctx: Any, event: Any) -> None:
        await gate(event, ctx)
        journal.add(("old", event.data))

    async with _serve(nats_server, project, does=slow) as host:
        binding = host.bindings[0]
        await _publish(broker, stream, 1, 2, 3)
        await gate.begun.wait()
        await eventually(lambda: _holds(host, work, 3), "three held messages")
        change = await project.save(host, work, "new", handler=noting(journal.add, "new"))
        gate.go_on.set()
        entries = await journal.wait(3)
        await wait_until_settled(broker, stream, work)
        found = await consumer(broker, stream, work)
        assert host.bindings[0] is binding

    assert (change.action, change.to_version, change.error) == ("swapped", "new", None)
    assert change.elapsed_ms < 1000
    assert entries == [("old", b"1"), ("new", b"2"), ("new", b"3")]
    assert found["num_redelivered"] == 0
    assert found["delivered"]["consumer_seq"] == 3


async def _holds(host: Host, work: str, count: int) -> bool:
    binding: Any = host.bindings[0]
    return bool(binding.buffer.count() == count)


async def test_start_runs_before_the_swap_and_stop_after_the_last_call_of_the_old_version(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    journal, gate = Journal(), Gate()
    project = _project(stream, work)

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
    async with _serve(nats_server, project, does=_adding(journal, "first")) as host:
        await project.save(host, work, "old", **old)
        await _publish(broker, stream, 1)
        await gate.begun.wait()
        await project.save(host, work, "new", **new)
        await _publish(broker, stream, 2)
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


@pytest.mark.parametrize("hook", ["raises", "hangs", "hand_over"])
async def test_a_start_that_fails_or_hangs_keeps_the_old_version_and_is_shown_until_mended(
    nats_server: NatsServer, broker: Broker, hook: str
) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work, start_timeout="200ms")

    async def fail(_: Any) -> None:
        if hook == "hangs":
            await asyncio.Event().wait()
        raise ValueError("hunter2")

    hooks: dict[str, Any] = {"hand_over": fail} if hook == "hand_over" else {"start": fail}
    hooks["stop"] = lambda _: journal.add("stopped")
    async with _serve(nats_server, project, does=_adding(journal, "old")) as host:
        change = await project.save(host, work, "bad", handler=noting(journal.add, "bad"), **hooks)
        again = await project.reload(host)
        shown = await _error_of(host)
        await _publish(broker, stream, 1)
        await journal.wait(1 + 2 * (hook == "hand_over"))
        project.write(work, "", **dict.fromkeys(hooks))
        mended = await project.save(host, work, "good", handler=noting(journal.add, "good"))
        after = await _error_of(host)

    assert change.action == "failed"
    assert change.from_version == change.to_version
    assert not again  # What was told once is not told again.
    assert change.error is not None
    assert shown == f"{work}: {change.error}"
    assert "hunter2" not in shown
    expected = "took longer than 0.2 s" if hook == "hangs" else "ValueError"
    assert expected in shown
    if hook != "hangs":
        assert "test_function_versions.py" in change.error.where
        assert "raise ValueError" in change.error.excerpt
    # What `start` has begun is stopped when `hand_over` fails, and each reload tries again.
    stopped = ["stopped"] * 2 if hook == "hand_over" else []
    assert journal.entries == [*stopped, ("old", b"1")]
    assert (mended.action, after) == ("swapped", None)


async def test_a_failure_of_loading_is_shown_until_the_last_good_version_is_on_disk_again(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work)
    failure = LoadFailure("work.py:3", "invalid syntax", "correct the module", "> 3 │ def")
    async with _serve(nats_server, project, does=_adding(journal, "old")) as host:
        project.errors = {work: failure, "shop.yaml": failure}
        broken = await project.reload(host)
        shown = await _error_of(host)
        metadata = host.bindings[-1].statuses[work].as_metadata()
        project.errors = {}
        mended = await project.reload(host)
        after = await _error_of(host)

    assert {name: change.action for name, change in broken.items()} == {
        work: "failed",
        "shop.yaml": "failed",
    }
    assert shown is not None
    assert shown.startswith("shop.yaml: work.py:3: invalid syntax")
    assert f"{work}: work.py:3: invalid syntax" in shown
    assert metadata["reload_error"] == str(failure)
    assert (mended[work].action, after) == ("mended", None)


async def test_another_concurrency_drains_the_binding_and_each_message_is_called_once(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    journal, gate = Journal(), Gate()
    project = _project(stream, work, concurrency=1)

    async def slow(ctx: Any, event: Any) -> None:
        await gate(event, ctx)
        journal.add(event.data)

    async with _serve(nats_server, project, does=slow) as host:
        binding = host.bindings[0]
        await _publish(broker, stream, 1, 2, 3)
        await gate.begun.wait()
        project.declare(work, concurrency=2)
        reloading = asyncio.create_task(project.reload(host))
        await _publish(broker, stream, 4)
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
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work, retry={"attempts": 3})
    async with _serve(nats_server, project, does=_adding(journal, "old")) as host:
        before = await consumer(broker, stream, work)
        project.declare(work, retry={"attempts": 7})
        [change] = (await project.reload(host)).values()
        after = await consumer(broker, stream, work)
        await _publish(broker, stream, 1)
        await journal.wait(1)

    assert change.action == "swapped"
    assert [each["config"]["max_deliver"] for each in (before, after)] == [3, 7]
    assert before["created"] == after["created"]


async def test_functions_and_streams_are_added_and_removed_and_the_messages_stay(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    more, added = _names()
    journal = Journal()
    project = _project(stream, work)
    async with _serve(nats_server, project, does=_adding(journal, "first")) as host:
        project.streams[more] = {"subjects": [f"{more}.>"]}
        project.declare(added, handler="on_event", consumer={"stream": more})
        project.write(added, "1", handler=noting(journal.add, "added"))
        started = await project.reload(host)
        await _publish(broker, more, 1)
        await journal.wait(1)
        project.write(work, "", stop=lambda _: journal.add("stopped"))
        await project.reload(host)
        project.remove(work)
        stopped = await project.reload(host)
        await _publish(broker, stream, 2)
        names = set(host.bindings[-1].statuses)
        found = await consumer(broker, stream, work)

    assert started[added].action == "started"
    assert (stopped[work].action, stopped[work].to_version) == ("stopped", "")
    assert journal.entries == [("added", b"1"), "stopped"]
    assert names == {added}
    assert found["num_pending"] == 1


async def test_a_change_that_plan_would_refuse_fails_alone(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    other, second = _names()
    journal = Journal()
    project = _project(stream, work)
    project.streams[other] = {"subjects": [f"{other}.>"]}
    project.declare(second, handler="on_event", consumer={"stream": other})
    async with _serve(nats_server, project, does=_adding(journal, "old")) as host:
        await _publish(broker, stream, 1, 2)
        await journal.wait(2)
        project.streams[stream] = {"subjects": [f"{stream}.>"], "max_msgs": 1}
        project.declare(work, consumer={"stream": stream, "deliver": "new"})
        project.declare(second, concurrency=3)
        changes = await project.reload(host)
        shown = await _error_of(host)
        stored = await broker.api(f"STREAM.INFO.{stream}")
        await _publish(broker, stream, 3)
        await journal.wait(3)

    assert {name: change.action for name, change in changes.items()} == {
        f"stream {stream}": "failed",
        work: "failed",
        second: "rebound",
    }
    assert shown is not None
    assert "deliver" in shown
    assert stored["state"]["messages"] == 2


async def test_the_lease_of_an_ordered_function_outlasts_a_swap(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work, ordered_by={"token": 2})
    async with _serve(nats_server, project, does=_adding(journal, "old")) as host:
        await _publish(broker, stream, 1)
        await journal.wait(1)
        leader: Any = host.bindings[0]
        leads_before = leader.leads
        change = await project.save(host, work, "new", handler=noting(journal.add, "new"))
        leads_after = leader.leads
        await _publish(broker, stream, 2)
        await journal.wait(2)
        project.declare(work, concurrency=4)
        [rebound] = (await project.reload(host)).values()
        await _publish(broker, stream, 3)
        entries = await journal.wait(3)

    assert (leads_before, leads_after) == (True, True)
    assert (change.action, rebound.action) == ("swapped", "rebound")
    assert entries == [("old", b"1"), ("new", b"2"), ("new", b"3")]


async def test_a_plain_handler_takes_over_from_an_async_one(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work)

    def plain(event: Any, ctx: Any) -> None:
        journal.add(("plain", event.data))

    async with _serve(nats_server, project, does=_adding(journal, "async")) as host:
        change = await project.save(host, work, "plain", handler=plain, is_async=False)
        await _publish(broker, stream, 1)
        entries = await journal.wait(1)

    assert change.action == "swapped"
    assert entries == [("plain", b"1")]


@pytest.mark.parametrize("ends", ["returns", "fails"])
@pytest.mark.parametrize("handler", ["on_event", "on_batch"])
async def test_an_old_version_is_collected_when_its_last_call_has_ended(
    nats_server: NatsServer, broker: Broker, handler: str, ends: str
) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work, handler, retry={"attempts": 1})

    class Code:
        """Stands for the module of a version."""

        async def __call__(self, given: Any, ctx: Any) -> None:
            journal.add("old")
            if ends == "fails":
                raise ValueError("no")

    async with _serve(nats_server, project, does=_adding(journal, "first")) as host:
        code = Code()
        alive = weakref.ref(code)
        await project.save(host, work, "old", handler=code)
        del code
        await _publish(broker, stream, 1)
        await journal.wait(1)
        await wait_until_settled(broker, stream, work)
        await project.save(host, work, "new", handler=noting(journal.add, "new"))
        await eventually(lambda: _is_gone(alive), "the end of the old version")


async def _is_gone(alive: "weakref.ref[Any]") -> bool:
    gc.collect()
    return alive() is None


async def test_a_reload_during_a_drain_is_refused_and_one_under_way_is_cut_short(
    nats_server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work)

    async def hang(ctx: Any) -> None:
        journal.add("starting")
        await asyncio.Event().wait()

    async with _serve(nats_server, project, does=_adding(journal, "old")) as host:
        project.write(work, "new", start=hang)
        reloading = asyncio.create_task(project.reload(host))
        await journal.wait(1)
        await host.drain(DEADLINE_S)
        cut_short = await reloading
        refused = await project.reload(host)

    assert (cut_short, refused) == ({}, {})
    told = capsys.readouterr().out
    assert "A reload was cut short" in told
    assert "Not reloaded: the host starts or drains" in told


async def test_of_reloads_that_wait_only_the_last_one_is_made(nats_server: NatsServer) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work)
    reloads: list[asyncio.Task[list[FunctionChange]]] = []
    async with _serve(nats_server, project, does=_adding(journal, "old")) as host:
        for number in range(1, 6):
            project.write(work, str(number), start=lambda _, n=number: journal.add(n))
            work_of = host.apply(project.manifest(), project.functions(), {})
            reloads.append(asyncio.create_task(work_of))
        changes = [await each for each in reloads]

    assert [change.to_version for each in changes for change in each][-1] == "5"
    assert len(journal.entries) < 5
    assert journal.entries[-1] == 5


async def test_five_hundred_versions_of_which_each_got_a_message_leave_only_the_newest(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = _names()
    journal = Journal()
    project = _project(stream, work, concurrency=4)

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

    async with _serve(nats_server, project, does=_adding(journal, "first")) as host:
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
