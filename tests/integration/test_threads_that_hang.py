"""Calls of plain functions hang: no other message is delayed, called twice or given up."""

import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from runtime import Context, Retry
from runtime.broker.connection import Broker
from runtime.call import threads
from runtime.errors import RequestFailed
from tests.support.host import (
    Journal,
    consumer,
    eventually,
    fresh,
    letters_of,
    running_host,
    wait_for_letters,
)
from tests.support.servers import NatsServer


async def test_plain_calls_that_hang_use_up_their_threads_and_nobody_s_attempts(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call waits for a free thread without using up time or attempts, as it has not begun."""
    monkeypatch.setattr(threads, "SPARE", 2)
    stream, name, other = fresh("S"), fresh("stuck"), fresh("clock")
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    journal, release = Journal(), threading.Event()

    def hang(ctx: Context, event: Any) -> None:
        journal.add((event.raw, ctx.attempt))
        if event.raw == b"hang":
            release.wait(60)

    async def fail(ctx: Context, event: Any) -> None:
        raise Retry("the clock ticks")

    functions = {
        other: {
            "handler": "on_event",
            "consumer": {"stream": stream, "filter_subjects": [f"{stream}.clock"]},
            "retry": {"attempts": 6, "delay": "100ms", "factor": 1, "jitter": 0},
        },
        name: {
            "handler": "on_event_in_thread",
            "consumer": {"stream": stream, "filter_subjects": [f"{stream}.a"]},
            "concurrency": 1,
            "timeout": "100ms",
            "retry": {"attempts": 2, "delay": "1h"},
        },
    }
    with capture_logs() as lines:
        async with running_host(
            nats_server.url, functions, {name: hang, other: fail}, streams=streams
        ) as host:
            for _ in range(3):
                await broker.publish(f"{stream}.a", b"hang")
            await journal.wait(3)
            for _ in range(5):
                await broker.publish(f"{stream}.a", b"well")

            async def is_seen() -> bool:
                return await host.probes.check_functions() == f"NO_FREE_THREAD {name}"

            await eventually(is_seen, "the readiness probe's word")
            await eventually(_held(broker, stream, name), "a message that waits for a thread")
            # After several time limits no waiting message has been called or given up.
            await broker.publish(f"{stream}.clock", b"")
            await wait_for_letters(broker, other)
            assert len(journal.entries) == 3
            assert await letters_of(broker, name) == []
            release.set()
            await journal.wait(8)
            assert await host.probes.check_functions() is None

    assert [attempt for raw, attempt in journal.entries if raw == b"well"] == [1] * 5
    told = [line for line in lines if line["event"].startswith("Calls that do not end")]
    assert [(line["function"], line["threads"]) for line in told] == [(name, 3)]


def _held(broker: Broker, stream: str, name: str) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return bool((await consumer(broker, stream, name))["num_ack_pending"])

    return look


async def test_an_endpoint_without_a_free_thread_answers_at_once(
    broker: Broker, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "SPARE", 0)
    name, release = fresh("stuck"), threading.Event()

    def hang(ctx: Context, event: Any) -> dict[str, int]:
        if event.data.number:
            release.wait(60)
        return {}

    spec: dict[str, Any] = {
        "handler": "on_request_in_thread",
        "endpoint": {"subject": f"{name}.call"},
        "concurrency": 1,
        "timeout": "100ms",
    }
    async with running_host(nats_server.url, {name: spec}, {name: hang}):
        with pytest.raises(RequestFailed, match="TIMEOUT"):
            await broker.request(f"{name}.call", b'{"number": 1}')
        with pytest.raises(RequestFailed, match="TRY_AGAIN") as refused:
            await broker.request(f"{name}.call", b"{}")
        release.set()

        async def is_served() -> bool:
            try:
                return (await broker.request(f"{name}.call", b"{}")).data == b"{}"
            except RequestFailed:
                return False

        await eventually(is_served, "an answer")

    assert refused.value.code == 503
