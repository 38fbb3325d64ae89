"""The HTTP client that functions share."""

import httpx

from runtime.addresses import AddressPolicy
from runtime.resource.http_transport import AiohttpTransport

_LIMITS = httpx.Limits(max_connections=200, keepalive_expiry=30.0)
_TIMEOUT = httpx.Timeout(30.0, connect=5.0, pool=5.0)


def open_http(policy: AddressPolicy | None = None) -> httpx.AsyncClient:
    """A client that follows no redirect and reads no proxy from the environment; needs a loop.

    A redirect would send a signed request and its body to an address that was not allowed.

    Args:
        policy: which addresses may be connected to; None for every one. A request to another one
            raises `Reject`.
    """
    tls = httpx.create_ssl_context(trust_env=False)
    return httpx.AsyncClient(
        transport=AiohttpTransport(_LIMITS, tls, policy),
        timeout=_TIMEOUT,
        follow_redirects=False,
        trust_env=False,
        headers={"User-Agent": "nats-function-runtime"},
    )


__all__ = ["open_http"]
