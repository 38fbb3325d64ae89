"""What the types have in common that send over connections of their own, one message at a time."""

import ssl
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from functions.domain.target_tls import TargetTls
from functions.outbound.transport.idle import MAX_IDLE_PER_KEY, Closable, IdleConnections
from functions.outbound.transport.streams import Dialer
from functions.route_delivery.guarded import GuardedSettings
from functions.route_delivery.tls_fields import TlsChooser, usual_context
from runtime import Context

L = TypeVar("L", bound=Hashable)
C = TypeVar("C", bound=Closable)
S = TypeVar("S", bound="ClosableSender")
T = TypeVar("T")


class Target(NamedTuple, Generic[L]):
    """Whose connection it is, where to, and with which credentials."""

    tenant_id: str
    host: str
    port: int
    tls: bool
    certificates: TargetTls | None
    login: L


class ConnectedSender(ABC, Generic[L, C]):
    """Works on connections that wait for the next message of the same tenant and login.

    Args:
        settings: the function's.
        tls: trusts the public authorities.
        max_per_target: how many connections to one target are kept.
    """

    def __init__(
        self,
        settings: GuardedSettings,
        tls: ssl.SSLContext,
        *,
        max_per_target: int = MAX_IDLE_PER_KEY,
    ) -> None:
        self._tls = TlsChooser(tls)
        self._timeout_s = settings.timeout_s
        self._dialer = Dialer(settings.policy, settings.nameserver_list)
        self._idle: IdleConnections[Target[L], C] = IdleConnections(max_per_key=max_per_target)

    async def close(self) -> None:
        """Close the connections."""
        self._idle.close()
        await self._dialer.close()

    async def _run(self, to: Target[L], work: Callable[[C], Awaitable[T]]) -> T:
        return await self._idle.run(to, work, connect=lambda: self._connect(to))

    @abstractmethod
    async def _connect(self, to: Target[L]) -> C:
        """A new connection."""


class ClosableSender(Protocol):
    """What the attempts of a function share."""

    async def close(self) -> None:
        """Close the connections."""


def sender_hooks(
    make: Callable[[Any, ssl.SSLContext], S],
) -> tuple[Callable[[Context[Any]], Awaitable[S]], Callable[[Context[Any]], Awaitable[None]]]:
    """`start` and `stop` of a type: a sender of the function's settings, and its end."""

    async def start(ctx: Context[Any]) -> S:
        return make(ctx.settings, await usual_context())

    async def stop(ctx: Context[Any]) -> None:
        await ctx.state.close()

    return start, stop


__all__ = ["ConnectedSender", "Target", "sender_hooks"]
