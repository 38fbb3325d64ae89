"""A deleted and re-created consumer replays its stream: done messages are called again."""

from collections import Counter
from typing import Any

import pytest

from runtime import Context
from runtime.broker.connection import Broker
from tests.support.host import (
    QUICK,
    Journal,
    eventually,
    fresh,
    letters_of,
    running_host,
    wait_until_settled,
)
from tests.support.servers import NatsServer
from tests.support.versions import delete_consumer

MESSAGES = 20
KINDS: dict[str, dict[str, Any]] = {
    "event": {"handler": "on_event"},
    "batch": {"handler": "on_batch", "batch": {"size": 10, "wait": "50ms"}},
    "ordered": {"handler": "on_event", "ordered_by": {"token": 2}},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_fails_in_a_replay_is_retried_and_becomes_a_dead_letter(
    broker: Broker, nats_server: NatsServer, kind: str
) -> None:
    stream, name, seen = fresh("REPLAY"), fresh("work"), Journal()

    async def act(_ctx: Context, given: Any) -> None:
        for event in given if kind == "batch" else [given]:
            seen.add(event.raw)
        if len(seen.entries) > MESSAGES:
            raise ValueError("not a second time")

    spec = {"consumer": {"stream": stream}, "retry": QUICK, **KINDS[kind]}
    streams = {stream: {"subjects": [f"{stream}.>"]}}
    async with running_host(nats_server.url, {name: spec}, {name: act}, streams=streams):
        for number in range(MESSAGES):
            await broker.publish(f"{stream}.{number}", b"%d" % number)
        await seen.wait(MESSAGES)
        await wait_until_settled(broker, stream, name)
        await delete_consumer(broker, stream, name)

        async def are_all_dead() -> bool:
            return len(await letters_of(broker, name)) == MESSAGES

        await eventually(are_all_dead, "every dead letter")
        await wait_until_settled(broker, stream, name)

    if kind != "batch":  # which is called again in parts, to find what fails
        attempts = 1 + QUICK["attempts"]
        assert Counter(seen.entries) == dict.fromkeys(set(seen.entries), attempts)
    assert len(set(seen.entries)) == MESSAGES
