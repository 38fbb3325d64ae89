"""Schedules on real servers, with a clock that the test sets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runtime import Context, Retry
from runtime.binding import schedule, settlement
from runtime.broker import function_consumers, stored
from runtime.broker.clock import ServerClock
from runtime.broker.connection import Broker
from runtime.host import Host
from tests.support.clock import ManualClock
from tests.support.host import QUICK, Journal, consumer, fresh, running_host, wait_until_settled
from tests.support.servers import NatsServer
from tests.support.versions import delete_consumer

HOURLY = {"cron": "0 * * * *"}
ONCE = {**HOURLY, "missed": "once"}


def at(time: str) -> datetime:
    """A moment of a day in the past."""
    return datetime.fromisoformat(f"2021-06-01T{time}+00:00")


def shown(moments: list[Any]) -> list[str]:
    return [f"{moment:%H:%M}" for moment in moments]


Serve = Callable[..., AbstractAsyncContextManager[Host]]


class ScheduledFunction:
    """A scheduled function; `journal` has the due time of each run."""

    def __init__(self, url: str, **spec: Any) -> None:
        self.url = url
        self.name = fresh("sweep")
        self.journal = Journal()
        self.spec = {"handler": "on_tick", "retry": QUICK, **spec}

    def serve(self, clock: ManualClock | None, **stated: Any) -> AbstractAsyncContextManager[Host]:
        spec = {**self.spec, "schedule": stated}
        return running_host(self.url, {self.name: spec}, {self.name: self.act}, clock=clock)

    async def act(self, ctx: Context) -> None:
        self.journal.add(ctx.due_at)

    async def ran(self, broker: Broker) -> list[str]:
        """The due times of all runs so far, as soon as none is in progress."""
        await wait_until_settled(broker, "SCHEDULES", f"schedule-{self.name}")
        return shown(self.journal.entries)


@pytest.fixture
async def scheduled(nats_server: NatsServer) -> ScheduledFunction:
    return ScheduledFunction(nats_server.url)


@pytest.fixture
async def own_server(server_directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


async def test_two_hosts_run_each_tick_once(scheduled: ScheduledFunction, broker: Broker) -> None:
    clock = ManualClock(at("09:10"))
    async with (
        scheduled.serve(clock, cron="*/5 * * * *"),
        scheduled.serve(clock, cron="*/5 * * * *"),
    ):
        await clock.idle(2)
        for minute in range(11, 31):
            clock.set(at(f"09:{minute}"))
            await clock.idle(2)
        ran = await scheduled.ran(broker)

    assert ran == ["09:15", "09:20", "09:25", "09:30"]


async def test_hosts_whose_clocks_differ_run_each_tick_once(
    scheduled: ScheduledFunction, broker: Broker
) -> None:
    ahead, behind = ManualClock(at("10:25")), ManualClock(at("09:55"))
    every = {"every": "10m"}
    async with scheduled.serve(ahead, **every), scheduled.serve(behind, **every):
        await ahead.idle()
        await behind.idle()
        ahead.set(at("10:30"))
        await ahead.idle()
        for minute in (0, 10, 20, 30):
            behind.set(at(f"10:{minute:02}"))
            await behind.idle()
        one = await scheduled.ran(broker)
        behind.set(at("10:40"))
        await behind.idle()
        ahead.set(at("10:40"))
        await ahead.idle()
        both = await scheduled.ran(broker)

    assert one == ["10:30"]
    assert both == ["10:30", "10:40"]


async def test_nothing_is_run_again_after_a_restart_of_hosts_and_server(
    own_server: NatsServer,
) -> None:
    scheduled, clock = ScheduledFunction(own_server.url), ManualClock(at("09:59"))
    for moment in ("10:00", "10:00:30", "10:20"):
        async with scheduled.serve(clock, **ONCE):
            await clock.idle()
            clock.set(at(moment))
            await clock.idle()
            await scheduled.journal.wait(1)
        own_server.restart()
    broker = await Broker.connect(own_server.url, name="test")
    ran = await scheduled.ran(broker)
    await broker.close()

    assert ran == ["10:00"]


@pytest.mark.parametrize(
    ("missed", "back", "expected"),
    [
        ("skip", "13:03", []),
        ("once", "13:03", ["13:00"]),
        ("skip", "13:00:59", ["13:00"]),
        ("once", "13:00:59", ["13:00"]),
    ],
)
async def test_what_was_missed_while_no_host_ran(
    scheduled: ScheduledFunction, broker: Broker, missed: str, back: str, expected: list[str]
) -> None:
    clock = ManualClock(at("09:30"))
    async with scheduled.serve(clock, **HOURLY, missed=missed):
        await clock.idle()
        clock.set(at("10:00"))
        await clock.idle()
        await scheduled.ran(broker)
    clock.set(at(back))
    async with (
        scheduled.serve(clock, **HOURLY, missed=missed),
        scheduled.serve(clock, **HOURLY, missed=missed),
    ):
        await clock.idle(2)
        caught_up = await scheduled.ran(broker)
        clock.set(at("14:00"))
        await clock.idle(2)
        at_last = await scheduled.ran(broker)

    assert caught_up == ["10:00", *expected]
    assert at_last == ["10:00", *expected, "14:00"]


async def test_a_new_function_has_missed_nothing_and_then_only_what_came_after(
    scheduled: ScheduledFunction, broker: Broker
) -> None:
    clock = ManualClock(datetime.now(UTC))
    async with scheduled.serve(clock, cron="0 0 * * *", missed="once"):
        await clock.idle()
        first = await scheduled.ran(broker)
    clock.set(clock.moment + timedelta(days=3))
    async with scheduled.serve(clock, cron="0 0 * * *", missed="once"):
        await clock.idle()
        second = await scheduled.ran(broker)

    assert first == []
    assert second == ["00:00"]
    assert clock.moment - scheduled.journal.entries[0] < timedelta(days=1)


async def test_at_start_runs_once_for_hosts_that_start_together(
    scheduled: ScheduledFunction, broker: Broker
) -> None:
    clock = ManualClock(at("09:10"))
    ran = []
    for moment in ("09:10", "09:10:50", "09:30", "10:00"):
        clock.set(at(moment))
        async with (
            scheduled.serve(clock, **HOURLY, at_start=True),
            scheduled.serve(clock, **HOURLY, at_start=True),
        ):
            await clock.idle(2)
            ran.append(await scheduled.ran(broker))

    first, again, later, tick = ran
    assert first == again == ["09:10"]
    assert later == ["09:10", "09:30"]
    assert tick == ["09:10", "09:30", "10:00"]


async def test_a_tick_that_falls_into_an_outage_comes_once_when_the_server_is_back(
    own_server: NatsServer,
) -> None:
    scheduled, clock = ScheduledFunction(own_server.url), ManualClock(at("08:59"))
    async with scheduled.serve(clock, **HOURLY), scheduled.serve(clock, **HOURLY):
        await clock.idle(2)
        clock.set(at("09:00"))
        await clock.idle(2)
        broker = await Broker.connect(own_server.url, name="test")
        await scheduled.ran(broker)
        own_server.stop()
        clock.set(at("10:00"))
        own_server.start()
        await scheduled.journal.wait(2)
        await clock.idle(2)
        ran = await scheduled.ran(broker)
        await broker.close()

    assert ran == ["09:00", "10:00"]


@pytest.mark.parametrize(("missed", "expected"), [("skip", []), ("once", ["12:00"])])
async def test_the_ticks_of_a_paused_function_are_missed(
    scheduled: ScheduledFunction, broker: Broker, missed: str, expected: list[str]
) -> None:
    if broker.server_version < function_consumers.PAUSE_SINCE:
        with pytest.raises(Exception, match="cannot pause a consumer"):
            function_consumers.check_pausing(broker.server_version)
        return
    clock = ManualClock(at("09:30"))
    async with scheduled.serve(clock, **HOURLY, missed=missed):
        await clock.idle()
        consumers = (await function_consumers.find_consumers(broker))[scheduled.name]
        await function_consumers.pause(broker, consumers, function_consumers.FOR_EVER)
        for hour in (10, 11, 12):
            clock.set(at(f"{hour}:00"))
            await clock.idle()
        paused = await stored.last(broker, "SCHEDULES", f"schedules.{scheduled.name}")
        await function_consumers.resume(broker, consumers)
        clock.set(at("12:01:30"))
        await clock.idle()
        resumed = await scheduled.ran(broker)
        clock.set(at("13:00"))
        await clock.idle()
        later = await scheduled.ran(broker)

    assert paused is None
    assert resumed == expected
    assert later == [*expected, "13:00"]


async def test_no_tick_is_added_to_too_many_that_wait(
    scheduled: ScheduledFunction, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "WAITING_MOST", 2)
    began, release, clock = asyncio.Event(), asyncio.Event(), ManualClock(at("09:30"))

    async def act(ctx: Context) -> None:
        began.set()
        await release.wait()
        scheduled.journal.add(ctx.due_at)

    scheduled.act = act  # type: ignore[method-assign]
    scheduled.spec["concurrency"] = 1
    async with scheduled.serve(clock, **HOURLY):
        await clock.idle()
        for hour in range(10, 15):
            clock.set(at(f"{hour}:00"))
            await clock.idle()
        await began.wait()
        release.set()
        await scheduled.ran(broker)
        clock.set(at("15:00"))
        await clock.idle()
        ran = await scheduled.ran(broker)

    assert ran == ["10:00", "11:00", "15:00"]


async def test_a_server_s_clock_that_was_wrong_does_not_silence_a_schedule(
    scheduled: ScheduledFunction, broker: Broker
) -> None:
    clock = ManualClock(at("20:59"))
    async with scheduled.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("21:00"))
        await clock.idle()
    clock.set(at("09:59"))
    async with scheduled.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("10:00"))
        await clock.idle()
        ran = await scheduled.ran(broker)

    assert ran == ["21:00", "10:00"]


async def test_a_tick_keeps_its_time_on_every_attempt_parked_or_not(
    scheduled: ScheduledFunction, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "PARK_FROM_S", 0.3)
    clock = ManualClock(at("09:59"))

    async def act(ctx: Context) -> None:
        scheduled.journal.add((ctx.attempt, ctx.due_at))
        if ctx.attempt < 3:
            raise Retry("not yet", delay_s=0.1 if ctx.attempt == 1 else 0.4)

    scheduled.act = act  # type: ignore[method-assign]
    async with scheduled.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("10:00"))
        runs = await scheduled.journal.wait(3)

    assert runs == [(attempt, at("10:00")) for attempt in (1, 2, 3)]


async def test_the_time_is_jetstream_s_own(scheduled: ScheduledFunction, broker: Broker) -> None:
    async with scheduled.serve(None, every="1s") as host:
        clock = ServerClock(broker)
        before = await clock.now()
        ack = await broker.publish("schedules.nobody", b"")
        after = await clock.now()
        message = await stored.fetch(broker, ack.stream, ack.sequence)
        ticks = await scheduled.journal.wait(2)
        functions = await host.probes.check_functions()

    assert message is not None
    at_server = datetime.fromtimestamp(message.stored_at_ns / 1e9, tz=UTC)
    assert before <= at_server < after + timedelta(seconds=5)
    assert ticks[1] - ticks[0] == timedelta(seconds=1)
    assert ticks[0].microsecond == 0
    assert functions is None


async def test_a_consumer_that_was_deleted_runs_no_old_tick_again(
    scheduled: ScheduledFunction, broker: Broker
) -> None:
    clock = ManualClock(at("09:59"))
    durable = f"schedule-{scheduled.name}"
    async with scheduled.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("10:00"))
        await scheduled.journal.wait(1)
    await delete_consumer(broker, "SCHEDULES", durable)
    async with scheduled.serve(clock, **HOURLY):
        await clock.idle()
        found = await consumer(broker, "SCHEDULES", durable)
        clock.set(at("11:00"))
        await clock.idle()
        ran = await scheduled.ran(broker)

    assert found["num_pending"] == 0
    assert ran == ["10:00", "11:00"]
