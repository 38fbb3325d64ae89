"""Policy of the network addresses that a request to a URL of somebody else may lead to.

A tenant chooses the URL and this host makes the request: without a guard the tenant could read
what only this host can reach (metadata services, databases, the admin port). The policy judges the
address of the connection, never the name, so a name that resolves to another address a moment later
does not get around it.

`ipaddress.is_global` does not suffice: it accepts NAT64 and 6to4 forms of private addresses, and
its answers differ between Python releases. Hence explicit lists. Source: the IANA special-purpose
address registries, and the lists of Svix and smokescreen.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network

_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<v4>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class AllowedNetwork:
    """A network that may be connected to although it is not public.

    Attributes:
        port: the only port; None for every port.
    """

    network: Network
    port: int | None = None


_REFUSED_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# No address outside 2000::/3 is global unicast: loopback, v4-compatible, link-local, unique local,
# multicast, 100::/64, 5f00::/16. Inside 2000::/3, the blocks below are reserved.
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments, Teredo and ORCHID among them
        "2001:db8::/32",
        "3fff::/20",
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = IPv6Network("2002::/16")


def canonical(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address in a v4-mapped, NAT64 or 6to4 address; any other address unchanged."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _SIX_TO_FOUR:
        return IPv4Address(int(address) >> 80 & 0xFFFF_FFFF)
    return address


class AddressPolicy:
    """Allows public addresses, and the addresses of `allowed_networks`."""

    def __init__(self, allowed_networks: Iterable[AllowedNetwork] = ()) -> None:
        self._allowed = tuple(allowed_networks)

    def allows(self, literal: str, port: int) -> bool:
        """Whether a connection to this literal address may be made; it may have a scope id."""
        address = canonical(ip_address(literal))
        if any(
            address in allowed.network and allowed.port in {None, port} for allowed in self._allowed
        ):
            return True
        if isinstance(address, IPv4Address):
            return not any(address in block for block in _REFUSED_V4)
        return address in _GLOBAL_UNICAST_V6 and not any(address in block for block in _REFUSED_V6)


def parse_networks(text: str) -> tuple[AllowedNetwork, ...]:
    """Networks from `10.0.0.0/8, fd00::/8, 127.0.0.1:8090, [::1]:8090`, by commas or blanks.

    Raises:
        ValueError: names the part that is not a network.
    """
    return tuple(_parse(part) for part in text.replace(",", " ").split())


def _parse(part: str) -> AllowedNetwork:
    found = _WITH_PORT.fullmatch(part)
    if found is None:
        return AllowedNetwork(ip_network(part))
    port = int(found["port"])
    if not 0 < port <= _MAX_PORT:
        raise ValueError(f"{part!r} has no port between 1 and {_MAX_PORT}")
    return AllowedNetwork(ip_network(found["v6"] or found["v4"]), port)
