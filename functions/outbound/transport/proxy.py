"""Connections through the egress proxy of an installation, by CONNECT.

Source: RFC 9110, section 9.3.6.
"""

import asyncio
import base64
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast
from urllib.parse import unquote

import httpx

from functions.outbound.transport.connector import Connector, Origin
from functions.outbound.transport.faults import (
    Fault,
    ProxyFailed,
    ProxyNoWay,
    TlsFailed,
)
from functions.outbound.transport.resolver import Resolver
from runtime import AddressPolicy

P = TypeVar("P", bound=asyncio.Protocol)

MAX_HEAD_BYTES = 16_384
CONNECT_S = 5.0
_HEAD_ENDS = b"\r\n\r\n"
_OK = range(200, 300)
# The proxy is well, and could not connect. Source: RFC 9110, section 15.6.
_NO_WAY = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that the operator of an installation has set.

    Attributes:
        host: a name in ASCII, or an address without brackets. It is the operator's, and may be
            private.
        authorization: the value of `Proxy-Authorization`; empty for none.
        tls: of the connection to the proxy itself; None if that is not encrypted.
    """

    host: str
    port: int
    authorization: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None


def parse_proxy(text: str) -> Proxy | None:
    """The proxy of `http://user:password@host:port` or `https://…`; None for an empty text.

    Raises:
        ValueError: this is no address of a proxy; the message does not repeat it.
    """
    if not text:
        return None
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError("a proxy must be an address such as http://proxy.example:3128") from None
    if url.scheme not in {"http", "https"} or not url.raw_host or url.raw_path not in {b"", b"/"}:
        raise ValueError("a proxy must be an address such as http://proxy.example:3128")
    authorization = ""
    if url.userinfo:
        pair = unquote(url.userinfo.decode("ascii")).encode()
        authorization = f"Basic {base64.b64encode(pair).decode()}"
    tls = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if tls else 80)
    return Proxy(url.raw_host.decode("ascii"), port, authorization, tls)


def make_connector(
    resolver: Resolver, policy: AddressPolicy, *, make: Callable[[], P], proxy: Proxy | None
) -> "Connector[P]":
    """Connects through the proxy, or without one."""
    if proxy is None:
        return Connector(resolver, policy, make=make)
    return ProxyConnector(resolver, policy, make=make, proxy=proxy)


class ProxyConnector(Connector[P]):
    """Connects to origins through a proxy.

    The host's name is resolved here, and the proxy gets an address that the policy allows: judging
    the name would leave the choice of the address to whoever owns the name.
    """

    def __init__(
        self, resolver: Resolver, policy: AddressPolicy, *, make: Callable[[], P], proxy: Proxy
    ) -> None:
        super().__init__(resolver, policy, make=make)
        self._proxy = proxy
        # The operator's address is not judged.
        self._to_proxy = Connector(resolver, _Everywhere(), make=_Head)

    async def _open_at(self, origin: Origin, address: str) -> P:
        head = await self._connect_to_proxy()
        transport = head.transport
        if transport is None:
            raise ProxyFailed("closed the connection")
        try:
            await self._ask(head, address, origin.port)
            connection = self._make()
            if origin.tls is None:
                transport.set_protocol(connection)
                connection.connection_made(transport)
            else:
                inner = await self._loop.start_tls(
                    transport, connection, origin.tls, server_hostname=origin.host
                )
                # None if the connection was lost meanwhile, which the exchange then finds.
                if inner is not None:
                    connection.connection_made(inner)
        except (ssl.SSLError, OSError) as failure:
            transport.abort()
            if isinstance(failure, TimeoutError):
                raise
            raise TlsFailed from None
        except BaseException:
            transport.abort()
            raise
        return connection

    async def _connect_to_proxy(self) -> "_Head":
        proxy = self._proxy
        try:
            return await self._to_proxy.open(
                Origin(proxy.host, proxy.port, proxy.tls), self._loop.time() + CONNECT_S
            )
        except TlsFailed:
            raise ProxyFailed("has a certificate or TLS version that was not accepted") from None
        except Fault:
            raise ProxyFailed("cannot be connected to") from None

    async def _ask(self, head: "_Head", address: str, port: int) -> None:
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"host: {target}"]
        if self._proxy.authorization:
            lines.append(f"proxy-authorization: {self._proxy.authorization}")
        status = await head.ask("\r\n".join([*lines, "", ""]).encode("ascii"))
        if status in _NO_WAY:
            raise ProxyNoWay(status)
        if status not in _OK:
            raise ProxyFailed(f"answered {status}")


class _Everywhere(AddressPolicy):
    def allows(self, literal: str, port: int) -> bool:
        del literal, port
        return True


class _Head(asyncio.Protocol):
    """Asks for a tunnel, and reads the head of the proxy's answer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._read = b""
        self._told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not `isinstance`: uvloop's transports are no subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes) -> int:
        if self.transport is not None:
            self.transport.write(request)
        return await self._told

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, end, rest = self._read.partition(_HEAD_ENDS)
        if self._told.done():
            return
        if not end:
            if len(self._read) > MAX_HEAD_BYTES:
                self._told.set_exception(ProxyFailed("sent a head without end"))
            return
        status = _status_of(head)
        if status is None:
            self._told.set_exception(ProxyFailed("does not speak HTTP"))
        elif rest and status in _OK:
            # Bytes that nobody asked for: they would be read as the endpoint's.
            self._told.set_exception(ProxyFailed("sent bytes after its answer"))
        else:
            self._told.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self._told.done():
            self._told.set_exception(ProxyFailed("closed the connection"))


def _status_of(head: bytes) -> int | None:
    line = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(line) < 2 or not line[0].startswith(b"HTTP/1.") or not line[1].isdigit():  # noqa: PLR2004
        return None
    return int(line[1][:4])


__all__ = ["MAX_HEAD_BYTES", "Proxy", "ProxyConnector", "make_connector", "parse_proxy"]
