"""Opens connections: resolve once, drop the addresses that the policy refuses, connect, TLS."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from functions.outbound.transport.faults import (
    ConnectFailed,
    ConnectTimeout,
    DestinationRefused,
    Fault,
    TlsFailed,
)
from functions.outbound.transport.resolver import Resolver
from runtime import AddressPolicy

P = TypeVar("P", bound=asyncio.Protocol)


@dataclass(frozen=True, slots=True)
class Origin:
    """What connections are shared by.

    Attributes:
        host: a name in ASCII, or an address without brackets.
        tls: None for `http`; a context of its own for a client certificate of its own.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


class Connector(Generic[P]):
    """Connects to origins.

    The policy judges the address that is connected to, literally, so a name that resolves to
    another address a moment later does not get around it. TLS checks the certificate against the
    name.

    Args:
        resolver: finds the addresses.
        policy: judges them.
        make: makes the protocol of a connection.
    """

    def __init__(self, resolver: Resolver, policy: AddressPolicy, *, make: Callable[[], P]) -> None:
        self._resolver = resolver
        self._policy = policy
        self._make = make
        self._loop = asyncio.get_running_loop()

    async def open(self, origin: Origin, deadline_s: float) -> P:
        """A new connection.

        Raises:
            DestinationRefused: the policy allows no address of the host.
            Fault: of the origin.
        """
        try:
            async with asyncio.timeout_at(deadline_s):
                addresses = await self._resolver.resolve(origin.host)
                allowed = [
                    address for address in addresses if self._policy.allows(address, origin.port)
                ]
                if not allowed:
                    raise DestinationRefused
                return await self._open_first(origin, allowed, deadline_s)
        except TimeoutError:
            raise ConnectTimeout from None

    async def _open_first(self, origin: Origin, addresses: list[str], deadline_s: float) -> P:
        """Connect to the first address that answers; each gets a share of the time that is left."""
        for number, address in enumerate(addresses[:-1]):
            now_s = self._loop.time()
            share_s = (deadline_s - now_s) / (len(addresses) - number)
            with contextlib.suppress(Fault, TimeoutError):
                async with asyncio.timeout_at(now_s + share_s):
                    return await self._open_at(origin, address)
        return await self._open_at(origin, addresses[-1])

    async def _open_at(self, origin: Origin, address: str) -> P:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            with contextlib.ExitStack() as undo:
                connected = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                connected.setblocking(False)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._loop.sock_connect(connected, (address, origin.port))
                _, connection = await self._loop.create_connection(
                    self._make,
                    sock=connected,
                    ssl=origin.tls,
                    server_hostname=origin.host if origin.tls else None,
                )
                undo.pop_all()
                return connection
        except ssl.SSLError:
            raise TlsFailed from None
        except OSError as failure:
            if isinstance(failure, TimeoutError):
                raise
            raise ConnectFailed from None


__all__ = ["Connector", "Origin"]
