"""Mistakes of tests that use a host of the test kit: each has one clear message."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import uvloop

from runtime import ConfigError, Context, Event
from runtime.testing import NotAwaited, TestHost, TestKitError
from tests.support.workload import behaviours

Act = Callable[[Context, Event[bytes]], Awaitable[None]]


def _host(act: Act | None = None, **options: Any) -> TestHost:
    async def nothing(ctx: Context, event: Event[bytes]) -> None:
        pass

    name = f"mistake_{len(behaviours)}"
    behaviours[name] = act or nothing
    spec = {
        "handler": "tests.support.workload:on_event",
        "consumer": {"stream": "S"},
        "retry": {"attempts": 2, "delay": "1s"},
        **options.pop("spec", {}),
    }
    manifest = {"streams": {"S": {"subjects": ["s.>"]}}, "functions": {name: spec}}
    return TestHost(manifest, **options)


async def _publish_and_settle(host: TestHost) -> None:
    await host.publish("s.a")
    await host.settled()


async def test_a_failed_assertion_prints_every_decision() -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        await ctx.publish("s.out", b"", msg_id="same")
        if event.subject == "s.bad":
            raise ValueError("out of stock")

    async with _host(act) as host:
        await host.publish("s.bad")
        await host.settled()
        with pytest.raises(AssertionError) as failed:
            host.assert_rejected("X")
    text = str(failed.value)
    assert text.startswith("rejected(code='X', subject='>'): expected at least 1, found 0\n")
    assert "S:1 s.bad  attempt 1  nak, again in 1 s: ValueError: out of stock at tests/" in text
    assert "publish s.out (0 bytes)" in text


async def test_a_function_that_hangs_ends_at_its_time_limit_without_waiting() -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        await asyncio.Event().wait()

    async with _host(act) as host:
        await host.publish("s.a")
        await host.settled()
        host.assert_retried(reason="ran longer than its limit of 30 s")


async def test_a_sleeping_function_sleeps_on_the_hosts_clock() -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        await asyncio.sleep(20)
        assert ctx.remaining_s == pytest.approx(10)

    async with _host(act, now=datetime(2030, 1, 1, tzinfo=UTC)) as host:
        await host.publish("s.a")
        await host.settled()
        host.assert_acked(count=1)
        assert (host.now - datetime(2030, 1, 1, tzinfo=UTC)).total_seconds() >= 20


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
async def test_a_function_that_would_end_the_process_fails_alone(raised: BaseException) -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        if event.data == b"end":
            raise raised

    async with _host(act) as host:
        await host.publish("s.a", b"end")
        await host.publish("s.a", b"fine")
        await host.settled()
        host.assert_retried(reason=type(raised).__name__, count=1)
        host.assert_acked(count=1)


async def test_a_call_without_await_is_named_at_the_end() -> None:
    with pytest.raises(NotAwaited, match=r"host.publish at tests/unit/.*:\d+ was not awaited"):
        async with _host() as host:
            host.publish("s.a")  # type: ignore[unused-coroutine] # the mistake under test


async def test_a_sleep_of_the_test_itself_is_refused() -> None:
    async with _host() as host:
        with pytest.raises(TestKitError, match="a sleep of the test would never end: use `await"):
            await asyncio.sleep(1)
        async with asyncio.timeout(60):
            await host.settled()


async def test_a_call_inside_a_function_is_refused() -> None:
    hosts: list[TestHost] = []

    async def act(ctx: Context, event: Event[bytes]) -> None:
        await hosts[0].advance("1m")

    async with _host(act) as host:
        hosts.append(host)
        await host.publish("s.a")
        await host.settled()
        host.assert_retried(reason="host.advance was called by a function that the host calls")


async def test_a_host_outside_its_block_is_refused() -> None:
    host = _host()
    with pytest.raises(TestKitError, match="has not begun"):
        await host.publish("s.a")
    async with host:
        pass
    for use in (lambda: host.publish("s.a"), host.settled, lambda: host.advance("1s")):
        with pytest.raises(TestKitError, match="has ended: use it inside its `async with` block"):
            await use()
    with pytest.raises(TestKitError, match="make a new one for each test"):
        async with host:
            pass


async def test_two_hosts_at_once_share_a_clock_and_nothing_else() -> None:
    async def fails(ctx: Context, event: Event[bytes]) -> None:
        raise ValueError("no")

    async with _host(fails) as one, _host() as other:
        await one.publish("s.a")
        await other.publish("s.a")
        await other.settled()
        await other.advance("10s")
        await one.settled()
        one.assert_rejected("ATTEMPTS_EXHAUSTED", count=1)
        other.assert_acked(count=1)
        assert not other.dead_letters


async def test_a_subject_without_a_stream_is_named_with_the_streams() -> None:
    async with _host() as host:
        with pytest.raises(
            TestKitError, match=r"no stream has the subject t.a; streams: S \('s.>'"
        ):
            await host.publish("t.a")


async def test_an_unknown_function_and_a_missing_database_are_refused() -> None:
    with pytest.raises(ConfigError, match="no manifest has this function; did you mean"):
        _host(only=["mistake_"])
    with pytest.raises(ConfigError, match="give database_url; the pytest fixture"):
        _host(spec={"uses": ["postgres"]})


async def test_a_span_needs_a_unit() -> None:
    async with _host() as host:
        with pytest.raises(TestKitError, match="'5' is not a duration"):
            await host.advance("5")


async def test_what_the_memory_does_not_model_is_refused() -> None:
    async def act(ctx: Context, event: Event[bytes]) -> None:
        await ctx.publish("s.out", b"", headers={"Nats-TTL": "5s"}, msg_id="x")

    async with _host(act, spec={"consumer": {"stream": "S", "filter_subjects": ["s.a"]}}) as host:
        with pytest.raises(TestKitError, match="the header Nats-TTL is not modelled in memory"):
            await _publish_and_settle(host)


async def test_a_function_whose_start_fails_fails_the_test_at_once() -> None:
    manifest = {
        "streams": {"S": {"subjects": ["s"]}},
        "functions": {"f": {"handler": "nowhere:f", "consumer": {"stream": "S"}}},
    }
    with pytest.raises(ConfigError, match="there is no module nowhere"):
        async with TestHost(manifest):
            pass


async def test_after_a_host_the_loops_clock_runs_and_never_goes_back() -> None:
    loop = asyncio.get_running_loop()
    async with _host() as host:
        await host.advance("1h")
        before_s = loop.time()
    assert loop.time() >= before_s
    await asyncio.wait_for(asyncio.sleep(0.01), 5)


def test_a_loop_whose_clock_cannot_be_stopped_is_named() -> None:
    async def enter() -> None:
        async with _host():
            pass

    with (
        pytest.raises(
            TestKitError, match=r"the clock of uvloop\.Loop cannot be stopped; use asyncio"
        ),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(enter())


async def test_every_function_is_discovered_in_memory_too() -> None:
    async with _host() as host:
        found = json.loads((await host.request("$SRV.INFO")).data)
        assert found["type"] == "io.nats.micro.v1.info_response"
