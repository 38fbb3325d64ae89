"""The readiness probes of one process: NATS, PostgreSQL and the functions themselves."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from runtime.broker.connection import Broker
from runtime.observe.health import Probe
from runtime.resource.shared import SharedResources
from runtime.stream_fill import StreamFill
from runtime.threads import FunctionThreads

STORAGE_FULL_S = 15.0
FORGIVEN = ("streams",)
"""What a person should look at although everything works."""


class Flowing(Protocol):
    """What is asked of a binding."""

    name: str

    @property
    def is_flowing(self) -> bool:
        """Whether it does its work at this moment."""


class Probes:
    """What a host says of itself; each probe passes with None or fails with a code.

    Args:
        bindings: those of the host; the list may grow.
        resources: what the functions use.

    Attributes:
        broker: set when there is a connection.
        has_started: whether every function is bound.
        is_draining: whether no more requests should come here.
        threads: those of each plain function.
        stream_fill: set when streams are watched.
        tasks: those that every function needs: without them no message is settled or kept.
    """

    def __init__(self, bindings: Sequence[Flowing], resources: SharedResources) -> None:
        self.broker: Broker | None = None
        self.has_started = self.is_draining = False
        self.stream_fill: StreamFill | None = None
        self.threads: Sequence[FunctionThreads] = ()
        self.tasks: Sequence[Flowing] = ()
        self._bindings = bindings
        self._resources = resources

    def is_alive(self) -> bool:
        """Whether this process can do its work without being started again."""
        return self.broker is None or not self.broker.has_ended

    async def check_nats(self) -> str | None:
        """Whether JetStream answers, and stored what it was last given to store.

        It answers when its disk is full. What it refused is forgotten after a while: a host that
        gets no traffic as it is not ready would publish nothing that could prove the contrary.
        """
        if self.broker is None:
            return "STARTING"
        await self.broker.ping()
        return "STORAGE_FULL" if self.broker.refused_for_space_s < STORAGE_FULL_S else None

    async def check_functions(self) -> str | None:
        """Whether every function is bound and does its work."""
        if not self.has_started:
            return "STARTING"
        if self.is_draining:
            return "DRAINING"
        stuck = [each.name for each in [*self._bindings, *self.tasks] if not each.is_flowing]
        if stuck:
            return f"NOT_FLOWING {' '.join(stuck)}"
        full = [each.function for each in self.threads if not each.has_room]
        return f"NO_FREE_THREAD {' '.join(full)}" if full else None

    async def check_streams(self) -> str | None:
        """Whether no stream is nearly full, among those that refuse messages when they are."""
        return await self.stream_fill.check() if self.stream_fill else None

    def by_name(self) -> dict[str, Probe]:
        """All of them; those in `FORGIVEN` leave the host ready."""
        probes: dict[str, Probe] = {
            "nats": self.check_nats,
            "functions": self.check_functions,
            "streams": self.check_streams,
        }
        if self._resources.uses("postgres"):
            probes["postgres"] = self._resources.check_postgres
        return probes

    def servers(self) -> dict[str, Callable[[], Awaitable[object]]]:
        """Those of the servers that messages may have to wait for, by the server's name."""
        probes: dict[str, Callable[[], Awaitable[object]]] = {"NATS": self.check_nats}
        if self._resources.uses("postgres"):
            probes["PostgreSQL"] = self._resources.check_postgres
        return probes
