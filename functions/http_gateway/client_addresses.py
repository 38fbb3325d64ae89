"""The address that a request comes from, also behind reverse proxies."""

import ipaddress
from collections.abc import Collection
from functools import lru_cache

from starlette.types import Scope

_IPV6_NETWORK_BITS = 64
_UNKNOWN = "unknown"
_MAX_NAMES_KEPT = 16_384
_MAX_LENGTH = 64

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ClientAddresses:
    """Reads the client's address, from `X-Forwarded-For` if a trusted proxy sends the request.

    Args:
        trusted_proxies: the networks of reverse proxies, such as `10.0.0.0/8`.
    """

    def __init__(self, trusted_proxies: Collection[Network]) -> None:
        self._trusted = tuple(trusted_proxies)

    def source(self, scope: Scope) -> str:
        """The address by which senders are told apart.

        An IPv6 address counts as its /64 network, since one host may use every address of that. The
        last address of `X-Forwarded-For` that is no trusted proxy counts: a client can write
        everything before it.
        """
        client = scope.get("client")
        nearest = client[0] if client else ""
        if self.is_proxy(nearest):
            for written in reversed(_forwarded(scope)):
                if _parse(written) is None:
                    break
                nearest = written
                if not self.is_proxy(written):
                    break
        return _name(nearest)

    def is_proxy(self, text: str) -> bool:
        """Whether an address is a trusted proxy's."""
        address = _parse(text)
        return address is not None and self._is_trusted(address)

    def _is_trusted(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._trusted)


def _forwarded(scope: Scope) -> list[str]:
    return [
        part.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for part in value.decode("latin-1").split(",")
    ]


def _name(text: str) -> str:
    return _short_name(text) if len(text) <= _MAX_LENGTH else _UNKNOWN


@lru_cache(_MAX_NAMES_KEPT)
def _short_name(text: str) -> str:
    found = _parse(text)
    if found is None:
        return _UNKNOWN
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, _IPV6_NETWORK_BITS), strict=False))
    return str(found)


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    # A longer text would fill the cache with what its author likes.
    return _parse_short(text) if len(text) <= _MAX_LENGTH else None


@lru_cache(_MAX_NAMES_KEPT)
def _parse_short(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address
