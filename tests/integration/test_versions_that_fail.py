"""Versions of a function that cannot be loaded, started or bound: the last good one runs on."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtime.binding.consumer import ConsumerBinding
from runtime.broker import streams
from runtime.broker.connection import Broker
from runtime.deployments.function_change import FunctionChange
from runtime.errors import Unavailable
from runtime.host import Host
from runtime.loader import LoadFailure
from runtime.loader.candidate import MANIFESTS
from tests.support.host import (
    DEADLINE_S,
    Journal,
    eventually,
    fresh,
)
from tests.support.reloading import adding, consuming, names, noting, publish, serve
from tests.support.servers import NatsServer


async def _error_of(host: Host) -> str | None:
    return await host.probes.check_reload()


@pytest.fixture
def own_server(server_directory: Path) -> Iterator[NatsServer]:
    """A server that a test may pause."""
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


@pytest.mark.parametrize("hook", ["raises", "hangs", "hand_over"])
async def test_a_start_that_fails_or_hangs_keeps_the_old_version_and_is_shown_until_mended(
    nats_server: NatsServer, broker: Broker, hook: str
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work, start_timeout="200ms")

    async def fail(_: Any) -> None:
        if hook == "hangs":
            await asyncio.Event().wait()
        raise ValueError("hunter2")

    hooks: dict[str, Any] = {"hand_over": fail} if hook == "hand_over" else {"start": fail}
    hooks["stop"] = lambda _: journal.add("stopped")
    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        change = await project.save(host, work, "bad", handler=noting(journal.add, "bad"), **hooks)
        again = await project.reload(host)
        shown = await _error_of(host)
        await publish(broker, stream, 1)
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
        assert "test_versions_that_fail.py" in change.error.where
        assert "raise ValueError" in change.error.excerpt
    # What `start` has begun is stopped when `hand_over` fails, and each reload tries again.
    stopped = ["stopped"] * 2 if hook == "hand_over" else []
    assert journal.entries == [*stopped, ("old", b"1")]
    assert (mended.action, after) == ("swapped", None)


async def test_a_failure_of_loading_is_shown_until_the_last_good_version_is_on_disk_again(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work)
    failure = LoadFailure("work.py:3", "invalid syntax", "correct the module", "> 3 │ def")
    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        project.errors = {work: failure, "shop.yaml": failure}
        broken = await project.reload(host)
        shown = await _error_of(host)
        discovery: Any = host.bindings[-1]
        metadata = discovery.statuses[work].as_metadata()
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


async def test_a_start_that_takes_long_is_told_of_while_it_runs(
    nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.deployments.hooks.SLOW_START_S", 0.05)
    stream, work = names()
    project = consuming(stream, work, start_timeout="300ms")

    async def start(_: Any) -> None:
        await asyncio.Event().wait()

    async with serve(nats_server, project, does=adding(Journal(), "old")) as host:
        with capture_logs() as lines:
            await project.save(host, work, "slow", start=start)

    told = [line for line in lines if line["event"] == "A function has not started yet"]
    assert [(line["function"], line["waits_for"], line["limit_s"]) for line in told] == [
        (work, "start", 0.3)
    ]


async def test_manifests_that_are_mended_are_reported_once(
    nats_server: NatsServer, broker: Broker
) -> None:
    project = consuming(*names())
    failure = LoadFailure("shop.yaml:1", "the file is empty", "declare something")
    async with serve(nats_server, project, does=adding(Journal(), "old")) as host:
        project.errors = {MANIFESTS: failure}
        broken = await project.reload(host)
        project.errors = {}
        mended = await project.reload(host)
        again = await project.reload(host)

    assert broken[MANIFESTS].error == failure
    assert {name: change.action for name, change in mended.items()} == {MANIFESTS: "mended"}
    assert again == {}


async def test_a_change_that_plan_would_refuse_fails_alone(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    other, second = names()
    journal = Journal()
    project = consuming(stream, work)
    project.streams[other] = {"subjects": [f"{other}.>"]}
    project.declare(second, handler="on_event", consumer={"stream": other})
    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        await publish(broker, stream, 1, 2)
        await journal.wait(2)
        project.streams[stream] = {"subjects": [f"{stream}.>"], "max_msgs": 1}
        project.declare(work, consumer={"stream": stream, "deliver": "new"})
        project.declare(second, concurrency=3)
        changes = await project.reload(host)
        shown = await _error_of(host)
        stored = await broker.api(f"STREAM.INFO.{stream}")
        await publish(broker, stream, 3)
        await journal.wait(3)

    assert {name: change.action for name, change in changes.items()} == {
        f"stream {stream}": "failed",
        work: "failed",
        second: "rebound",
    }
    assert shown is not None
    assert "deliver" in shown
    assert stored["state"]["messages"] == 2


async def test_a_reload_during_a_drain_is_refused_and_one_under_way_is_cut_short(
    nats_server: NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work)

    async def hang(ctx: Any) -> None:
        journal.add("starting")
        await asyncio.Event().wait()

    async with serve(nats_server, project, does=adding(journal, "old")) as host:
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
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work)
    reloads: list[asyncio.Task[list[FunctionChange]]] = []
    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        for number in range(1, 6):
            project.write(work, str(number), start=lambda _, n=number: journal.add(n))
            work_of = host.apply(project.manifest(), project.functions(), {})
            reloads.append(asyncio.create_task(work_of))
        changes = [await each for each in reloads]

    assert [change.to_version for each in changes for change in each][-1] == "5"
    assert len(journal.entries) < 5
    assert journal.entries[-1] == 5


async def test_a_start_that_hangs_does_not_hold_up_the_version_that_mends_it(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    more = fresh("more")
    journal = Journal()
    project = consuming(stream, work)

    async def hang(ctx: Any) -> None:
        journal.add("starting")
        await asyncio.Event().wait()

    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        project.declare(more, handler="on_event", consumer={"stream": stream, "durable": more})
        for name in (work, more):
            project.write(name, "hangs", start=hang)
        reloading = asyncio.create_task(project.reload(host))
        await journal.wait(2)
        for name in (work, more):
            project.write(name, "mended", start=None, handler=noting(journal.add, name))
        async with asyncio.timeout(5):  # The usual `start_timeout` is 60 s.
            mended = await project.reload(host)
            hung = await reloading
        await publish(broker, stream, 1)
        entries = await journal.wait(4)
        error = await _error_of(host)

    assert {name: change.action for name, change in mended.items()} == {
        work: "swapped",
        more: "started",
    }
    assert (hung, error) == ({}, None)
    assert sorted(entries[2:]) == sorted([(work, b"1"), (more, b"1")])


async def test_a_resource_that_no_function_used_before_is_opened_for_the_new_version(
    nats_server: NatsServer, broker: Broker
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work)

    async def act(event: Any, ctx: Any) -> None:
        journal.add(type(ctx.http).__name__)

    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        project.declare(work, uses=["http", "postgres"])
        refused = await project.save(host, work, "new", handler=act)
        project.declare(work, uses=["http"])
        change = await project.save(host, work, "new", handler=act)
        await publish(broker, stream, 1)
        entries = await journal.wait(1)

    assert refused.error is not None
    assert "the host has no DATABASE_URL" in str(refused.error)
    assert (change.action, entries) == ("swapped", ["AsyncClient"])


async def test_code_is_swapped_while_nats_is_away_and_what_needs_nats_waits_for_the_next_reload(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work = names()
    more = fresh("more")
    journal = Journal()
    project = consuming(stream, work)
    monkeypatch.setattr(streams, "PATIENCE", 1)
    async with serve(own_server, project, does=adding(journal, "old")) as host:
        own_server.kill()
        swapped = await project.save(host, work, "new", handler=noting(journal.add, "new"))
        project.declare(more, handler="on_event", consumer={"stream": stream, "durable": more})
        away = await project.reload(host)
        own_server.restart()
        await eventually(lambda: _answers(host), "JetStream")
        back = await project.reload(host)
        error = await _error_of(host)

    assert swapped.action == "swapped"
    assert away[more].action == "failed"
    assert "is unavailable" in str(away[more].error)
    assert (back[more].action, error) == ("started", None)


async def _answers(host: Host) -> bool:
    try:
        return await host.probes.check_nats() is None
    except Unavailable:
        return False


async def test_a_binding_that_cannot_begin_leaves_the_one_before(
    nats_server: NatsServer, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work = names()
    journal = Journal()
    project = consuming(stream, work)
    start = ConsumerBinding.start

    async def fail_once(binding: ConsumerBinding) -> None:
        monkeypatch.setattr(ConsumerBinding, "start", start)
        raise Unavailable("NATS", "the connection is closed")

    async with serve(nats_server, project, does=adding(journal, "old")) as host:
        monkeypatch.setattr(ConsumerBinding, "start", fail_once)
        project.declare(work, concurrency=2)
        new = {"handler": noting(journal.add, "new"), "stop": lambda _: journal.add("stopped")}
        failed = await project.save(host, work, "new", **new)
        await publish(broker, stream, 1)
        await journal.wait(2)
        mended = await project.reload(host)
        await publish(broker, stream, 2)
        entries = await journal.wait(3)

    assert (failed.action, mended[work].action) == ("failed", "rebound")
    assert sorted(entries[:2], key=str) == [("old", b"1"), "stopped"]
    assert entries[2] == ("new", b"2")
