"""Options of one host process."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from runtime.binding.settlement import MakeSettlement, Settlement
from runtime.broker.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """Options of how a process runs its functions.

    Attributes:
        services: whether service functions run in this process; with several worker processes they
            run in one of them.
        bind_only: create and change no stream and no consumer.
        clock: the clock of schedules; JetStream's unless another is given.
        sweeps: whether the process makes dead letters of messages whose processes died.
        careful_ack_waits: see `SharedServices`.
        peers: see `SharedServices`.
        worker: the name of the worker process; empty in a host without worker processes.
        postgres_connections: the most connections that its functions may hold together.
        rebind_grace_s: how long a binding that a reload replaces may work on its held messages.
        registration_key: the key that signs the HTTP exposure of endpoints; None signs nothing.
        before_endpoints: awaited by a drain before the endpoints end, because other processes of
            this host may still call them.
        settlement: see `SharedServices`.
    """

    services: bool = True
    bind_only: bool = False
    clock: Clock | None = None
    sweeps: bool = True
    careful_ack_waits: int = 0
    peers: int = 1
    worker: str = ""
    postgres_connections: int = 16
    rebind_grace_s: float = 30.0
    registration_key: str | None = None
    before_endpoints: Callable[[], Awaitable[None]] | None = None
    settlement: MakeSettlement = Settlement


__all__ = ["HostOptions"]
