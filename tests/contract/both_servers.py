"""Runs a case on the server in memory and on a real nats-server: the same case, the same answers.

In memory the clock jumps whenever a case waits, so that waiting there takes no time.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from runtime.broker.connection import Broker
from runtime.testing.clock import FakeClock
from runtime.testing.server.memory_server import MemoryServer
from tests.support.probe import Probe
from tests.support.servers import NatsServer

Case = Callable[[Probe], Awaitable[None]]
SERVERS = ("memory", "real")
_LIMIT_S = 30.0


class Cases(list[Case]):
    """The cases of a module; decorates each of them."""

    def __call__(self, case: Case) -> Case:
        self.append(case)
        return case


async def run(case: Case, server: str, nats_server: NatsServer) -> None:
    """Run a case on one of `SERVERS`."""
    if server == "real":
        await _on(nats_server.url, case)
        return
    clock, memory = FakeClock.acquire(), MemoryServer(datetime.now(UTC))
    try:
        await clock.run(_on(memory.url, case), _LIMIT_S)
        assert not memory.not_modelled
    finally:
        memory.close()
        clock.release()


async def _on(url: str, case: Case) -> None:
    broker = await Broker.connect(url, name="test")
    try:
        await case(Probe(broker))
    finally:
        await broker.close()
