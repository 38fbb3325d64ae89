"""The address that a request comes from, also behind reverse proxies."""

from collections.abc import Collection

from starlette.types import Scope

from functions.domain.source_addresses import Address, Network, parse_address, source_name


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
                if parse_address(written) is None:
                    break
                nearest = written
                if not self.is_proxy(written):
                    break
        return source_name(nearest)

    def owner(self, address: str) -> str:
        """Whose connections an address has: as `source`, and empty for a trusted proxy."""
        return "" if self.is_proxy(address) else source_name(address)

    def is_proxy(self, text: str) -> bool:
        """Whether an address is a trusted proxy's."""
        address = parse_address(text)
        return address is not None and self._is_trusted(address)

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _forwarded(scope: Scope) -> list[str]:
    return [
        part.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for part in value.decode("latin-1").split(",")
    ]
