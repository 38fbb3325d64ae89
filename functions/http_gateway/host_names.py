"""Checks the `Host` header, so that no web page reaches the gateway by DNS rebinding.

A page's own name can resolve to 127.0.0.1. For a browser its requests to the gateway then have the
page's origin, so the page may read the answers. The `Host` header holds the page's name.
"""

import ipaddress
from collections.abc import Collection
from functools import lru_cache

from starlette.types import Scope

_MAX_LENGTH = 255


class HostNames:
    """Allows or refuses the `Host` header of a request.

    Args:
        listens_on: the gateway's address. On loopback only loopback's names are allowed; on another
            address every name is, unless `allowed` has any.
        allowed: names beside those of loopback, without a port; for example a reverse proxy's.
    """

    def __init__(self, listens_on: str, allowed: Collection[str]) -> None:
        self._allowed = {name.lower() for name in allowed}
        self._judges = bool(allowed) or _is_loopback(listens_on)

    def allow(self, scope: Scope) -> bool:
        """Whether the request names an allowed host, or no host, which no browser does."""
        if not self._judges:
            return True
        for name, value in scope["headers"]:
            if name == b"host":
                host = _without_port(value.decode("latin-1"))
                return not host or host in self._allowed or _names_loopback(host)
        return True


def _without_port(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower().rstrip(".")


def _names_loopback(host: str) -> bool:
    # A longer text would fill the cache with what its author likes.
    return len(host) <= _MAX_LENGTH and _is_loopback(host)


@lru_cache(1024)
def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
