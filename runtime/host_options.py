"""How one process of a host runs its functions."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from runtime.broker.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """How a process runs its functions.

    Attributes:
        services: whether functions with a lifetime of their own run here too; with several worker
            processes they run in one.
        bind_only: make and change no stream and no consumer.
        clock: what schedules go by; JetStream's unless another is given.
        sweeps: whether it makes dead letters of messages whose processes died.
        careful_ack_waits: see `SharedServices`.
        peers: see `SharedServices`.
        postgres_connections: how many its functions may hold together.
        before_endpoints: awaited by a drain before the endpoints end, for those who call them from
            other processes of this host.
    """

    services: bool = True
    bind_only: bool = False
    clock: Clock | None = None
    sweeps: bool = True
    careful_ack_waits: int = 0
    peers: int = 1
    postgres_connections: int = 16
    before_endpoints: Callable[[], Awaitable[None]] | None = None


__all__ = ["HostOptions"]
