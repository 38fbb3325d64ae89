"""A message is delivered again to the host that has done it, since its acknowledgement was lost."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime import Context
from runtime.broker.connection import Broker
from runtime.observe.metrics import Metrics
from tests.support.host import Journal, eventually, fresh, running_host, wait_until_settled
from tests.support.proxy import Proxy
from tests.support.servers import NatsServer, nats_url

MESSAGES = 50
KINDS: dict[str, dict[str, Any]] = {
    "event": {"handler": "on_event"},
    "batch": {"handler": "on_batch", "batch": {"size": 20, "wait": "50ms"}},
    "fair": {"handler": "on_event", "fair_by": {"token": 2}},
    "ordered": {"handler": "on_event", "ordered_by": {"token": 2}},
}


@pytest.fixture
async def proxy(nats_server: NatsServer) -> AsyncIterator[Proxy]:
    async with Proxy(nats_server.port) as between:
        yield between


@pytest.mark.parametrize("kind", KINDS)
async def test_a_redelivered_done_message_is_acknowledged_again_and_not_called(
    broker: Broker, proxy: Proxy, kind: str
) -> None:
    stream, name, seen = fresh("REPEAT"), fresh("work"), Journal()
    metrics = Metrics("0.0.0")

    async def act(_ctx: Context, given: Any) -> None:
        for event in given if kind == "batch" else [given]:
            seen.add(event.raw)
            if len(seen.entries) == MESSAGES:
                proxy.silence()

    spec = {"consumer": {"stream": stream, "ack_wait": "3s"}, "concurrency": 4, **KINDS[kind]}
    url = nats_url(proxy.port)
    async with running_host(
        url,
        {name: spec},
        {name: act},
        streams={stream: {"subjects": [f"{stream}.>"]}},
        metrics=metrics,
    ):
        for number in range(MESSAGES):
            await broker.publish(f"{stream}.{number % 5}", b"%d" % number)
        await seen.wait(MESSAGES)

        async def is_on_its_way() -> bool:
            return b"+ACK" in proxy.withheld

        await eventually(is_on_its_way, "an acknowledgement")
        proxy.reset()
        proxy.heal()
        await wait_until_settled(broker, stream, name)

    assert sorted(seen.entries) == sorted(b"%d" % number for number in range(MESSAGES))
    counted = metrics.function(name).messages
    assert counted["acked"] == MESSAGES
    assert counted["repeated"] >= 1
