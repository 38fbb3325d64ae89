"""The names by which senders are told apart: by their address, an IPv6 one by its network."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

UNKNOWN = "unknown"
_IPV6_NETWORK_BITS = 64
_MAX_NAMES_KEPT = 16_384
_MAX_LENGTH = 64

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


# RFC 1918, 4193, 6598, and the machine itself: where a proxy, a load balancer or a container's
# gateway stands.
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
)
PRIVATE = "private"
"""Names the private networks and the machine itself where networks are asked for."""


def read_networks(text: str) -> tuple[Network, ...]:
    """The networks in a text such as `private, 203.0.113.7, 2001:db8::/32`.

    Raises:
        ValueError: a part is no network; the text names it.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    named = [ipaddress.ip_network(part) for part in parts if part != PRIVATE]
    return (*named, *(_PRIVATE if PRIVATE in parts else ()))


def parse_address(text: str) -> Address | None:
    """The address that is written, an IPv4 one in IPv6 form as IPv4; None for other texts."""
    # A longer text would fill the cache with what its author likes.
    return _parse(text) if len(text) <= _MAX_LENGTH else None


def source_name(text: str) -> str:
    """The address as written, its /64 network with IPv6, since one host may use all of that.

    `unknown` for a text that is no address.
    """
    return _name(text) if len(text) <= _MAX_LENGTH else UNKNOWN


def is_in(source: str, networks: Iterable[Network]) -> bool:
    """Whether a source, as `source_name` gives it, is in one of the networks."""
    address = parse_address(source.partition("/")[0])
    return address is not None and any(address in network for network in networks)


@lru_cache(_MAX_NAMES_KEPT)
def _name(text: str) -> str:
    found = _parse(text)
    if found is None:
        return UNKNOWN
    if isinstance(found, ipaddress.IPv6Address):
        # The machine itself is one host.
        if found.is_loopback:
            return str(found)
        return str(ipaddress.ip_network((found, _IPV6_NETWORK_BITS), strict=False))
    return str(found)


@lru_cache(_MAX_NAMES_KEPT)
def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address


__all__ = [
    "PRIVATE",
    "UNKNOWN",
    "Address",
    "Network",
    "is_in",
    "parse_address",
    "read_networks",
    "source_name",
]
