"""One POST to a URL that a tenant chose: guarded, never redirected, bounded in time and size.

The client uses httpcore and not httpx: the guard must be in the network backend, which httpx's
transport does not let a caller set, and httpcore has no redirects, cookies, proxies or environment
to switch off.
"""

import asyncio
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass

import httpcore
import httpx

from functions.route_delivery.addresses import AddressPolicy

IDLE_CONNECTIONS = 100
IDLE_CONNECTION_S = 30.0
EXCERPT_S = 2.0


class DestinationRefused(Exception):  # noqa: N818 - as `PublishFailed`
    """The policy allows none of the destination's addresses; another attempt would not help."""


class NameNotResolved(Exception):  # noqa: N818 - as `PublishFailed`
    """The destination's name has no address at present."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An endpoint's answer.

    Attributes:
        headers: names in lower case; of a repeated header, the last value.
        excerpt: the beginning of the body, as text that PostgreSQL can store.
    """

    status: int
    headers: dict[str, str]
    excerpt: str


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once, drops the addresses that the policy refuses, connects to the others.

    TLS still checks the certificate against the name, which httpcore takes from the request's URL.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first allowed address that answers; each gets a share of the time."""
        addresses = [a for a in await _resolve(host, port) if self._policy.allows(a)]
        if not addresses:
            raise DestinationRefused
        share_s = None if timeout is None else timeout / len(addresses)
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(
                    address, port, share_s, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(
            addresses[-1], port, share_s, local_address, socket_options
        )

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Always refused."""
        raise DestinationRefused

    async def sleep(self, seconds: float) -> None:
        """Sleep between httpcore's retries, of which the client asks for none."""
        await self._inner.sleep(seconds)


async def _resolve(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise NameNotResolved from None
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class WebhookClient:
    """Posts to URLs that tenants chose. A function has one client and closes it at its stop."""

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        timeout_s: float,
        excerpt_bytes: int,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._excerpt_bytes = excerpt_bytes
        # No limit on connections: the function's concurrency limits them, and with a limit here
        # endpoints that hang would make the others wait.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=None,
            max_keepalive_connections=IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_CONNECTION_S,
            network_backend=GuardedBackend(policy),
        )

    async def post(self, url: httpx.URL, headers: dict[str, str], body: bytes) -> HttpAnswer:
        """Send `body` and read the beginning of the answer.

        Raises:
            DestinationRefused: the policy allows no address of the host.
            NameNotResolved: the host has no address.
            TimeoutError: no status within the time limit, resolving and connecting included.
            httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError: from httpcore.
        """
        async with (
            asyncio.timeout(self._timeout_s) as limit,
            self._pool.stream(
                "POST",
                httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=[*headers.items(), ("host", url.netloc)],
                content=body,
                extensions={"timeout": {"connect": self._timeout_s}},
            ) as response,
        ):
            limit.reschedule(None)
            return HttpAnswer(
                response.status,
                {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in response.headers
                },
                await self._read_excerpt(response),
            )

    async def _read_excerpt(self, response: httpcore.Response) -> str:
        # The status alone decides the outcome: a body that stalls or breaks off is no failure.
        read = bytearray()
        try:
            async with asyncio.timeout(EXCERPT_S):
                async for chunk in response.aiter_stream():
                    read += chunk
                    if len(read) >= self._excerpt_bytes:
                        break
        except (
            TimeoutError,
            httpcore.TimeoutException,
            httpcore.NetworkError,
            httpcore.ProtocolError,
        ):
            pass
        text = bytes(read[: self._excerpt_bytes]).decode("utf-8", errors="replace")
        return text.replace("\0", "\N{REPLACEMENT CHARACTER}")

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()
