"""Service functions, which run for as long as the host."""

import asyncio
import time

import pytest

from runtime import Context
from runtime.binding import service
from runtime.errors import ConfigError, Problem
from tests.support.host import Journal, fresh, running_host, start_host
from tests.support.servers import NatsServer
from tests.support.workload import behaviours


def _spec(name: str) -> dict[str, object]:
    return {name: {"handler": "run", "service": True}}


async def test_a_service_runs_until_it_is_asked_to_stop(nats_server: NatsServer) -> None:
    name, journal = fresh("serve"), Journal()

    async def act(ctx: Context) -> None:
        journal.add("began")
        await ctx.stopping.wait()
        journal.add("ended")

    async with running_host(nats_server.url, _spec(name), {name: act}) as host:
        await journal.wait(1)
        ready = await host.probes.check_functions()

    assert ready is None
    assert journal.entries == ["began", "ended"]


async def test_a_service_that_crashes_or_returns_is_started_again(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "RESTART_FIRST_S", 0.05)
    name, journal = fresh("serve"), Journal()

    async def act(ctx: Context) -> None:
        journal.add(time.monotonic())
        if len(journal.entries) == 1:
            raise ValueError("broken")
        if len(journal.entries) == 2:
            return
        if len(journal.entries) == 3:
            raise SystemExit(1)
        if len(journal.entries) == 4:
            raise asyncio.CancelledError
        await ctx.stopping.wait()

    async with running_host(nats_server.url, _spec(name), {name: act}) as host:
        times = list(await journal.wait(5))
        ready = await host.probes.check_functions()

    assert ready is None
    # The pause doubles each time.
    waits_s = [0.05, 0.1, 0.2, 0.4]
    assert all(times[n + 1] - times[n] >= wait_s for n, wait_s in enumerate(waits_s))


async def test_a_service_that_does_not_stop_is_ended(nats_server: NatsServer) -> None:
    name, journal = fresh("serve"), Journal()

    async def act(ctx: Context) -> None:
        try:
            journal.add("began")
            await asyncio.Event().wait()
        finally:
            journal.add("ended")

    behaviours[name] = act
    host = await start_host(nats_server.url, _spec(name))
    await journal.wait(1)
    began_s = time.monotonic()
    await host.drain(0.2)

    assert journal.entries == ["began", "ended"]
    assert time.monotonic() - began_s < 30


async def test_a_service_that_cannot_run_as_it_is_configured_ends_the_host(
    nats_server: NatsServer,
) -> None:
    name = fresh("serve")
    problem = Problem("PORT", "", "8080 is taken", "choose another")

    async def act(ctx: Context) -> None:
        raise ConfigError([problem])

    behaviours[name] = act
    host = await start_host(nats_server.url, _spec(name))
    try:
        with pytest.raises(ConfigError, match="8080 is taken"):
            await asyncio.wait_for(host.wait_for_failure(), 60)
    finally:
        await host.drain(1)


async def test_services_run_in_one_worker_alone(nats_server: NatsServer) -> None:
    name, journal = fresh("serve"), Journal()

    async def act(ctx: Context) -> None:
        journal.add(1)
        await ctx.stopping.wait()

    async with (
        running_host(nats_server.url, _spec(name), {name: act}, services=False),
        running_host(nats_server.url, _spec(name), {name: act}),
    ):
        await journal.wait(1)

    assert journal.entries == [1]
