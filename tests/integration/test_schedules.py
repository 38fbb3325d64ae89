"""Schedules on real servers, by a clock that the test sets."""

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


class Clockwork:
    """One scheduled function, whose runs are kept in `journal` by the time they were due."""

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
        """When every run so far was due, once none is under way."""
        await wait_until_settled(broker, "SCHEDULES", f"schedule-{self.name}")
        return shown(self.journal.entries)


@pytest.fixture
async def clockwork(nats_server: NatsServer) -> Clockwork:
    return Clockwork(nats_server.url)


@pytest.fixture
async def own_server(server_directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(server_directory / "nats")
    yield server
    server.stop()


async def test_two_hosts_run_each_tick_once(clockwork: Clockwork, broker: Broker) -> None:
    clock = ManualClock(at("09:10"))
    async with (
        clockwork.serve(clock, cron="*/5 * * * *"),
        clockwork.serve(clock, cron="*/5 * * * *"),
    ):
        await clock.idle(2)
        for minute in range(11, 31):
            clock.set(at(f"09:{minute}"))
            await clock.idle(2)
        ran = await clockwork.ran(broker)

    assert ran == ["09:15", "09:20", "09:25", "09:30"]


async def test_hosts_whose_clocks_differ_run_each_tick_once(
    clockwork: Clockwork, broker: Broker
) -> None:
    ahead, behind = ManualClock(at("10:25")), ManualClock(at("09:55"))
    every = {"every": "10m"}
    async with clockwork.serve(ahead, **every), clockwork.serve(behind, **every):
        await ahead.idle()
        await behind.idle()
        ahead.set(at("10:30"))
        await ahead.idle()
        for minute in (0, 10, 20, 30):
            behind.set(at(f"10:{minute:02}"))
            await behind.idle()
        one = await clockwork.ran(broker)
        behind.set(at("10:40"))
        await behind.idle()
        ahead.set(at("10:40"))
        await ahead.idle()
        both = await clockwork.ran(broker)

    assert one == ["10:30"]
    assert both == ["10:30", "10:40"]


async def test_nothing_is_run_again_after_a_restart_of_hosts_and_server(
    own_server: NatsServer,
) -> None:
    clockwork, clock = Clockwork(own_server.url), ManualClock(at("09:59"))
    for moment in ("10:00", "10:00:30", "10:20"):
        async with clockwork.serve(clock, **ONCE):
            await clock.idle()
            clock.set(at(moment))
            await clock.idle()
            await clockwork.journal.wait(1)
        own_server.restart()
    broker = await Broker.connect(own_server.url, name="test")
    ran = await clockwork.ran(broker)
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
    clockwork: Clockwork, broker: Broker, missed: str, back: str, expected: list[str]
) -> None:
    clock = ManualClock(at("09:30"))
    async with clockwork.serve(clock, **HOURLY, missed=missed):
        await clock.idle()
        clock.set(at("10:00"))
        await clock.idle()
        await clockwork.ran(broker)
    clock.set(at(back))
    async with (
        clockwork.serve(clock, **HOURLY, missed=missed),
        clockwork.serve(clock, **HOURLY, missed=missed),
    ):
        await clock.idle(2)
        caught_up = await clockwork.ran(broker)
        clock.set(at("14:00"))
        await clock.idle(2)
        at_last = await clockwork.ran(broker)

    assert caught_up == ["10:00", *expected]
    assert at_last == ["10:00", *expected, "14:00"]


async def test_a_new_function_has_missed_nothing_and_then_only_what_came_after(
    clockwork: Clockwork, broker: Broker
) -> None:
    clock = ManualClock(datetime.now(UTC))
    async with clockwork.serve(clock, cron="0 0 * * *", missed="once"):
        await clock.idle()
        first = await clockwork.ran(broker)
    clock.set(clock.moment + timedelta(days=3))
    async with clockwork.serve(clock, cron="0 0 * * *", missed="once"):
        await clock.idle()
        second = await clockwork.ran(broker)

    assert first == []
    assert second == ["00:00"]
    assert clock.moment - clockwork.journal.entries[0] < timedelta(days=1)


async def test_at_start_runs_once_for_hosts_that_start_together(
    clockwork: Clockwork, broker: Broker
) -> None:
    clock = ManualClock(at("09:10"))
    ran = []
    for moment in ("09:10", "09:10:50", "09:30", "10:00"):
        clock.set(at(moment))
        async with (
            clockwork.serve(clock, **HOURLY, at_start=True),
            clockwork.serve(clock, **HOURLY, at_start=True),
        ):
            await clock.idle(2)
            ran.append(await clockwork.ran(broker))

    first, again, later, tick = ran
    assert first == again == ["09:10"]
    assert later == ["09:10", "09:30"]
    assert tick == ["09:10", "09:30", "10:00"]


async def test_a_tick_that_falls_into_an_outage_comes_once_when_the_server_is_back(
    own_server: NatsServer,
) -> None:
    clockwork, clock = Clockwork(own_server.url), ManualClock(at("08:59"))
    async with clockwork.serve(clock, **HOURLY), clockwork.serve(clock, **HOURLY):
        await clock.idle(2)
        clock.set(at("09:00"))
        await clock.idle(2)
        broker = await Broker.connect(own_server.url, name="test")
        await clockwork.ran(broker)
        own_server.stop()
        clock.set(at("10:00"))
        own_server.start()
        await clockwork.journal.wait(2)
        await clock.idle(2)
        ran = await clockwork.ran(broker)
        await broker.close()

    assert ran == ["09:00", "10:00"]


@pytest.mark.parametrize(("missed", "expected"), [("skip", []), ("once", ["12:00"])])
async def test_the_ticks_of_a_paused_function_are_missed(
    clockwork: Clockwork, broker: Broker, missed: str, expected: list[str]
) -> None:
    if broker.server_version < function_consumers.PAUSE_SINCE:
        with pytest.raises(Exception, match="cannot pause a consumer"):
            function_consumers.check_pausing(broker.server_version)
        return
    clock = ManualClock(at("09:30"))
    async with clockwork.serve(clock, **HOURLY, missed=missed):
        await clock.idle()
        consumers = (await function_consumers.find_consumers(broker))[clockwork.name]
        await function_consumers.pause(broker, consumers, function_consumers.FOR_EVER)
        for hour in (10, 11, 12):
            clock.set(at(f"{hour}:00"))
            await clock.idle()
        paused = await stored.last(broker, "SCHEDULES", f"schedules.{clockwork.name}")
        await function_consumers.resume(broker, consumers)
        clock.set(at("12:01:30"))
        await clock.idle()
        resumed = await clockwork.ran(broker)
        clock.set(at("13:00"))
        await clock.idle()
        later = await clockwork.ran(broker)

    assert paused is None
    assert resumed == expected
    assert later == [*expected, "13:00"]


async def test_no_tick_is_added_to_too_many_that_wait(
    clockwork: Clockwork, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "WAITING_MOST", 2)
    began, release, clock = asyncio.Event(), asyncio.Event(), ManualClock(at("09:30"))

    async def act(ctx: Context) -> None:
        began.set()
        await release.wait()
        clockwork.journal.add(ctx.due_at)

    clockwork.act = act  # type: ignore[method-assign]
    clockwork.spec["concurrency"] = 1
    async with clockwork.serve(clock, **HOURLY):
        await clock.idle()
        for hour in range(10, 15):
            clock.set(at(f"{hour}:00"))
            await clock.idle()
        await began.wait()
        release.set()
        await clockwork.ran(broker)
        clock.set(at("15:00"))
        await clock.idle()
        ran = await clockwork.ran(broker)

    assert ran == ["10:00", "11:00", "15:00"]


async def test_a_server_s_clock_that_was_wrong_does_not_silence_a_schedule(
    clockwork: Clockwork, broker: Broker
) -> None:
    clock = ManualClock(at("20:59"))
    async with clockwork.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("21:00"))
        await clock.idle()
    clock.set(at("09:59"))
    async with clockwork.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("10:00"))
        await clock.idle()
        ran = await clockwork.ran(broker)

    assert ran == ["21:00", "10:00"]


async def test_a_tick_keeps_its_time_on_every_attempt_parked_or_not(
    clockwork: Clockwork, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "PARK_FROM_S", 0.3)
    clock = ManualClock(at("09:59"))

    async def act(ctx: Context) -> None:
        clockwork.journal.add((ctx.attempt, ctx.due_at))
        if ctx.attempt < 3:
            raise Retry("not yet", delay_s=0.1 if ctx.attempt == 1 else 0.4)

    clockwork.act = act  # type: ignore[method-assign]
    async with clockwork.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("10:00"))
        runs = await clockwork.journal.wait(3)

    assert runs == [(attempt, at("10:00")) for attempt in (1, 2, 3)]


async def test_the_time_is_jetstream_s_own(clockwork: Clockwork, broker: Broker) -> None:
    async with clockwork.serve(None, every="1s") as host:
        clock = ServerClock(broker)
        before = await clock.now()
        ack = await broker.publish("schedules.nobody", b"")
        after = await clock.now()
        message = await stored.fetch(broker, ack.stream, ack.sequence)
        ticks = await clockwork.journal.wait(2)
        functions = await host.probes.check_functions()

    assert message is not None
    at_server = datetime.fromtimestamp(message.stored_at_ns / 1e9, tz=UTC)
    assert before <= at_server < after + timedelta(seconds=5)
    assert ticks[1] - ticks[0] == timedelta(seconds=1)
    assert ticks[0].microsecond == 0
    assert functions is None


async def test_a_consumer_that_was_deleted_runs_no_old_tick_again(
    clockwork: Clockwork, broker: Broker
) -> None:
    clock = ManualClock(at("09:59"))
    durable = f"schedule-{clockwork.name}"
    async with clockwork.serve(clock, **HOURLY):
        await clock.idle()
        clock.set(at("10:00"))
        await clockwork.journal.wait(1)
    await delete_consumer(broker, "SCHEDULES", durable)
    async with clockwork.serve(clock, **HOURLY):
        await clock.idle()
        found = await consumer(broker, "SCHEDULES", durable)
        clock.set(at("11:00"))
        await clock.idle()
        ran = await clockwork.ran(broker)

    assert found["num_pending"] == 0
    assert ran == ["10:00", "11:00"]
