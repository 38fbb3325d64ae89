"""`Retry(counts=False)`: a message waits, however often, and no attempt of it is used up."""

from typing import Any

import pytest

from runtime import Context, Retry
from runtime.broker.connection import Broker
from tests.support.host import QUICK, Journal, fresh, running_host, wait_until_settled
from tests.support.servers import NatsServer

POSTPONED = 5


@pytest.mark.parametrize("ordering", [{}, {"ordered_by": {"token": 2}}], ids=["plain", "ordered"])
async def test_a_message_that_is_postponed_often_keeps_its_attempts(
    broker: Broker, nats_server: NatsServer, ordering: dict[str, Any]
) -> None:
    stream, name = fresh("JOBS"), fresh("deliver")
    attempts = Journal()

    async def deliver(ctx: Context, event: Any) -> None:
        attempts.add((event.attempt, ctx.is_last_attempt))
        if len(attempts.entries) <= POSTPONED:
            raise Retry("the endpoint is busy", delay_s=0.01, counts=False)
        if len(attempts.entries) == POSTPONED + 1:
            raise Retry("the endpoint failed", delay_s=0.01)

    spec = {
        "handler": "on_event",
        "consumer": {"stream": stream},
        "retry": {**QUICK, "attempts": 2},
        **ordering,
    }
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: spec}, {name: deliver}, streams=streams):
        await broker.publish(f"{stream}.a", b"job")
        await attempts.wait(POSTPONED + 2)
        await wait_until_settled(broker, stream, name)
    assert attempts.entries == [(1, False)] * (POSTPONED + 1) + [(2, True)]


async def test_a_postponed_message_keeps_its_attempts_when_its_host_ends_and_another_goes_on(
    broker: Broker, nats_server: NatsServer
) -> None:
    stream, name = fresh("JOBS"), fresh("deliver")
    attempts = Journal()

    async def deliver(ctx: Context, event: Any) -> None:
        attempts.add(event.attempt)
        if len(attempts.entries) < 3:
            raise Retry("the endpoint is busy", delay_s=0.3, counts=False)

    spec = {"handler": "on_event", "consumer": {"stream": stream}, "retry": QUICK}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    for calls in (1, 2, 3):
        async with running_host(nats_server.url, {name: spec}, {name: deliver}, streams=streams):
            if calls == 1:
                await broker.publish(f"{stream}.a", b"job")
            await attempts.wait(calls)
    assert attempts.entries == [1, 1, 1]
