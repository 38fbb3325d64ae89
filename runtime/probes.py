"""The readiness probes of one process: NATS, PostgreSQL and the functions themselves."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from runtime.broker.connection import Broker
from runtime.call.threads import FunctionThreads
from runtime.observe.health import Probe
from runtime.resource.shared import SharedResources
from runtime.stream_fill import StreamFill
from runtime.unread_watch import UnreadWatch

STORAGE_FULL_S = 15.0
SHOWN_ERRORS = 5
"""The most failed reloads that the probe names."""
FORGIVEN = ("streams", "reload")
"""Probes that a person should look at although the host is ready when they fail."""


class Flowing(Protocol):
    """The part of a binding that a probe needs."""

    name: str

    @property
    def is_flowing(self) -> bool:
        """Whether the binding works at this moment."""


class Probes:
    """The probes of a host process; each passes with None or fails with a code.

    Args:
        bindings: returns the bindings of the host that should flow now.
        threads: returns the thread pools of the plain functions.
        reload_errors: returns why the last good version of a function, or of the manifests, runs
            on, by its name.
        resources: the resources of the functions.

    Attributes:
        broker: the connection; None before it.
        has_started: whether every function is bound.
        is_draining: whether the host drains, so that it should get no more requests.
        stream_watches: watch how full streams are; empty before that begins.
        tasks: tasks that every function needs: they send settlements and in-progress signals.
    """

    def __init__(
        self,
        resources: SharedResources,
        *,
        bindings: Callable[[], Sequence[Flowing]],
        threads: Callable[[], Sequence[FunctionThreads]],
        reload_errors: Callable[[], Mapping[str, str]],
    ) -> None:
        self.broker: Broker | None = None
        self.has_started = self.is_draining = False
        self.stream_watches: Sequence[StreamFill | UnreadWatch] = ()
        self.tasks: Sequence[Flowing] = ()
        self._bindings = bindings
        self._threads = threads
        self._reload_errors = reload_errors
        self._servers: dict[str, Callable[[], Awaitable[object]]] = {"NATS": self.check_nats}
        self._by_name: dict[str, Probe] = {
            "nats": self.check_nats,
            "functions": self.check_functions,
            "streams": self.check_streams,
            "reload": self.check_reload,
        }
        self._resources = resources
        self.follow_resources()

    def is_alive(self) -> bool:
        """Whether this process can work without a restart."""
        return self.broker is None or not self.broker.has_ended

    async def check_nats(self) -> str | None:
        """Whether JetStream answers, and has not lately refused a message for lack of storage.

        JetStream answers even when its disk is full. A refusal is forgotten after a while: a host
        that is not ready gets no traffic, so it would publish nothing that could succeed.
        """
        if self.broker is None:
            return "STARTING"
        await self.broker.ping()
        return "STORAGE_FULL" if self.broker.refused_for_space_s < STORAGE_FULL_S else None

    async def check_functions(self) -> str | None:
        """Whether every function is bound and works."""
        if not self.has_started:
            return "STARTING"
        if self.is_draining:
            return "DRAINING"
        stuck = [each.name for each in [*self._bindings(), *self.tasks] if not each.is_flowing]
        if stuck:
            return f"NOT_FLOWING {' '.join(stuck)}"
        full = [each.function for each in self._threads() if not each.has_room]
        return f"NO_FREE_THREAD {' '.join(full)}" if full else None

    async def check_streams(self) -> str | None:
        """Whether no stream is about to refuse messages, or to delete unread ones."""
        found = [await watch.check() for watch in self.stream_watches]
        return "; ".join(filter(None, found)) or None

    async def check_reload(self) -> str | None:
        """Whether the last reload of every function succeeded; else what keeps the old version."""
        errors = self._reload_errors()
        shown = [f"{name}: {error}" for name, error in list(errors.items())[:SHOWN_ERRORS]]
        more = len(errors) - len(shown)
        return "; ".join([*shown, *([f"and {more} more"] if more else [])]) or None

    def by_name(self) -> Mapping[str, Probe]:
        """All probes by name; a failure of one in `FORGIVEN` leaves the host ready."""
        return self._by_name

    def servers(self) -> Mapping[str, Callable[[], Awaitable[object]]]:
        """The checks of the servers whose outage messages wait out, by the server's name."""
        return self._servers

    def follow_resources(self) -> None:
        """Check PostgreSQL too from now on, if a function uses it."""
        if self._resources.uses("postgres"):
            self._by_name["postgres"] = self._resources.check_postgres
            self._servers["PostgreSQL"] = self._resources.check_postgres
