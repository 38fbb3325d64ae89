"""Background tasks of a host that fail unexpectedly are logged and restarted."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtime.binding.in_progress import InProgressTicker
from runtime.binding.ordered.leader import OrderedBinding
from runtime.binding.schedule import ScheduleTicker
from runtime.binding.spill import Spill
from runtime.binding.worker import WorkerPool
from runtime.broker.advisories import Sweeper
from runtime.broker.connection import Broker
from runtime.broker.recent_acks import RecentAcks
from runtime.broker.remote_calls import CallServer, subject_of
from runtime.embedded.supervision import Launch, ServerSupervisor
from runtime.errors import Unavailable
from runtime.lag import LagWatch
from runtime.resource.outage import Outages
from tests.support.host import (
    Journal,
    consumer,
    eventually,
    fresh,
    letters_of,
    running_host,
    wait_until_settled,
)
from tests.support.servers import NatsServer

FAILED = "A background task failed, it is started again"


class Fault:
    """Makes a method of a class raise at its first call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, method: str) -> None:
        self.is_due = True
        self.called_again = asyncio.Event()
        real: Callable[..., Any] = getattr(owner, method)

        def call(*arguments: Any, **options: Any) -> Any:
            if self.is_due:
                self.is_due = False
                raise ValueError("a defect")
            self.called_again.set()
            return real(*arguments, **options)

        monkeypatch.setattr(owner, method, call)


def tasks_that_failed(lines: list[Any]) -> list[str]:
    return [line["task"] for line in lines if line["event"] == FAILED]


async def test_a_settler_that_failed_settles_what_comes_after(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def act(ctx: Any, event: Any) -> None:
        journal.add(event.sequence)

    spec = {"handler": "on_event", "consumer": {"stream": stream, "ack_wait": "1s"}}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    with structlog.testing.capture_logs() as lines:
        async with running_host(nats_server.url, {work: spec}, {work: act}, streams=streams):
            fault = Fault(monkeypatch, Broker, "send_all")
            for _ in range(2):
                await broker.publish(f"{stream}.a", b"x")
            await asyncio.wait_for(fault.called_again.wait(), 60)
            await wait_until_settled(broker, stream, work)

    assert tasks_that_failed(lines) == ["settler"]
    assert sorted(set(journal.entries)) == [1, 2]


async def test_messages_are_kept_alive_after_their_ticker_has_failed(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work, journal = fresh("S"), fresh("work"), Journal()

    async def act(ctx: Any, event: Any) -> None:
        journal.add(ctx.attempt)
        await asyncio.sleep(2.5)

    spec = {"handler": "on_event", "consumer": {"stream": stream, "ack_wait": "2s"}}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    with structlog.testing.capture_logs() as lines:
        async with running_host(nats_server.url, {work: spec}, {work: act}, streams=streams):
            Fault(monkeypatch, InProgressTicker, "due")
            await broker.publish(f"{stream}.a", b"x")
            await wait_until_settled(broker, stream, work)
            found = await consumer(broker, stream, work)

    assert tasks_that_failed(lines) == ["in-progress ticker"]
    assert journal.entries == [1]
    assert found["num_redelivered"] == 0


async def test_a_schedule_that_failed_ticks_again_and_the_host_is_not_ready_meanwhile(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.supervised_task.RESTART_FIRST_S", 0.5)
    tick, journal = fresh("tick"), Journal()

    async def act(ctx: Any) -> None:
        journal.add("ticked")

    fault = Fault(monkeypatch, ScheduleTicker, "_turn")
    functions = {tick: {"handler": "on_tick", "schedule": {"every": "1s"}}}
    with structlog.testing.capture_logs() as lines:
        async with running_host(nats_server.url, functions, {tick: act}) as host:
            await eventually(_is_false(lambda: fault.is_due), "the fault")
            meanwhile = await host.probes.check_functions()
            await journal.wait(1)
            after = await host.probes.check_functions()

    assert tasks_that_failed(lines) == [f"schedule {tick}"]
    assert meanwhile == f"NOT_FLOWING {tick} (clock)"
    assert after is None


def _is_false(condition: Callable[[], bool]) -> Callable[[], Any]:
    async def look() -> bool:
        return not condition()

    return look


@pytest.mark.parametrize(
    ("owner", "method", "task"),
    [(Sweeper, "run_once", "advisory sweeper"), (LagWatch, "_update", "lag watch")],
)
async def test_a_watch_that_failed_looks_again(
    nats_server: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    task: str,
) -> None:
    stream, work = fresh("S"), fresh("work")
    fault = Fault(monkeypatch, owner, method)
    spec = {"handler": "on_event", "consumer": {"stream": stream}}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    with structlog.testing.capture_logs() as lines:
        async with running_host(nats_server.url, {work: spec}, streams=streams):
            await asyncio.wait_for(fault.called_again.wait(), 60)

    assert tasks_that_failed(lines) == [task]


async def test_an_advisory_that_cannot_be_handled_keeps_no_other_from_it(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work = fresh("S"), fresh("work")

    async def leave(ctx: Any, event: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("runtime.broker.advisories._RETRY_DELAY_S", 0.2)
    monkeypatch.setattr(InProgressTicker, "due", lambda *_: [])
    fault = Fault(monkeypatch, Sweeper, "_sweep")
    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream, "ack_wait": "1s"},
        "retry": {"attempts": 1},
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    with structlog.testing.capture_logs():
        async with running_host(
            nats_server.url, {work: spec}, {work: leave}, streams=streams, grace_s=0.1
        ):
            await broker.publish(f"{stream}.a", b"x")

            async def given_up() -> bool:
                return bool(await letters_of(broker, work))

            await eventually(given_up, "the dead letter")

    assert not fault.is_due


async def test_a_standby_that_failed_is_heard_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work = fresh("S"), fresh("work")
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    functions = {
        work: {
            "handler": "on_event",
            "consumer": {"stream": stream},
            "ordered_by": {"token": 2},
        }
    }
    with structlog.testing.capture_logs() as lines:
        async with running_host(nats_server.url, functions, streams=streams) as first:
            [leader] = [each for each in first.bindings if isinstance(each, OrderedBinding)]
            await eventually(_is_false(lambda: not leader.leads), "a leader")
            fault = Fault(monkeypatch, CallServer, "_announce")
            async with running_host(nats_server.url, functions, streams=streams):
                await asyncio.wait_for(fault.called_again.wait(), 60)

    failed = [line["callback"] for line in lines if line["log_level"] == "error"]
    assert failed == ["CallServer._on_leader"]


async def test_a_leader_whose_beat_failed_is_heard_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work, uses = fresh("S"), fresh("work"), 0
    beats_again = asyncio.Event()

    def subject_or_fault(function: str, what: str) -> str:
        nonlocal uses
        uses += what == "leader"
        # The standby's subscription is the first use, before this host leads.
        if what == "leader" and uses == 2:
            raise ValueError("a defect")
        if what == "leader" and uses > 2:
            beats_again.set()
        return subject_of(function, what)

    monkeypatch.setattr("runtime.broker.remote_calls.subject_of", subject_or_fault)
    spec = {"handler": "on_event", "consumer": {"stream": stream}, "ordered_by": {"token": 2}}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    with structlog.testing.capture_logs() as lines:
        async with running_host(nats_server.url, {work: spec}, streams=streams):
            await asyncio.wait_for(beats_again.wait(), 15)

    assert tasks_that_failed(lines) == [f"leader {work}"]


async def test_messages_that_could_not_be_moved_aside_are_moved_later(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, work, journal, release = fresh("S"), fresh("work"), Journal(), asyncio.Event()

    async def act(ctx: Any, event: Any) -> None:
        await release.wait()
        journal.add(event.sequence)

    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream},
        "fair_by": {"token": 2},
        "concurrency": 2,
        "max_in_flight": 20,
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    fault = Fault(monkeypatch, Spill, "_store")
    with structlog.testing.capture_logs() as lines:
        async with running_host(nats_server.url, {work: spec}, {work: act}, streams=streams):
            for _ in range(60):
                await broker.publish(f"{stream}.a", b"x")
            await asyncio.wait_for(fault.called_again.wait(), 60)
            release.set()
            await journal.wait(60)

    assert "spill mover" in tasks_that_failed(lines)
    assert sorted(journal.entries) == list(range(1, 61))


@dataclass
class SleepingServer:
    """A program that is ready at once and does nothing; one of its starts fails unexpectedly."""

    log: Path
    name: str = "sleeping"
    proof: str = "--sleeping-server-of-a-test"
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 5.0
    starts: int = 0

    async def prepare(self) -> Launch:
        self.starts += 1
        if self.starts == 2:
            raise ValueError("a defect")
        return Launch([sys.executable, "-c", "import time; time.sleep(60)", self.proof], {})

    async def is_ready(self, server: int) -> bool:
        return True

    def find_complaint(self, written: str) -> str:
        return ""

    def is_passing(self, complaint: str) -> bool:
        return False


async def test_a_server_whose_restart_failed_unforeseen_is_started_again(tmp_path: Path) -> None:
    server = SleepingServer(tmp_path / "log")
    supervisor = ServerSupervisor(server)
    with structlog.testing.capture_logs() as lines:
        await supervisor.start()
        first = supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        async def runs_again() -> bool:
            return supervisor.pid not in {None, first}

        await eventually(runs_again, "another process")
        await supervisor.stop()

    assert tasks_that_failed(lines) == ["supervision of sleeping"]
    assert server.starts == 3


@pytest.mark.parametrize("handler", ["on_event", "on_batch"])
@pytest.mark.parametrize(
    "defect",
    [(RecentAcks, "forget"), (Outages, "wait_until_over"), (WorkerPool, "_rejudge")],
    ids=lambda defect: defect[1],
)
async def test_a_message_whose_worker_failed_is_tried_again_and_not_held_for_ever(
    broker: Broker,
    nats_server: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    handler: str,
    defect: tuple[type, str],
) -> None:
    stream, work, fault = fresh("S"), fresh("work"), Fault(monkeypatch, *defect)

    async def act(ctx: Any, given: Any) -> None:
        if fault.is_due:
            raise Unavailable("PostgreSQL", "away")

    spec = {
        "handler": handler,
        "consumer": {"stream": stream},
        "retry": {"attempts": 3, "delay": "100ms", "jitter": 0},
    }
    if handler == "on_event":
        spec["ordered_by"] = {"token": 1}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {work: spec}, {work: act}, streams=streams):
        await broker.publish(f"{stream}.a", b"x")
        await wait_until_settled(broker, stream, work)

    assert not fault.is_due
    assert await letters_of(broker, work) == []
