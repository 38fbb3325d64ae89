"""Under which names the gateway answers, so that no web page reaches it by a name of its own.

A page can have its own name resolve to 127.0.0.1 (DNS rebinding). Its requests then are of the same
origin to a browser, which lets the page read the answers. The `Host` header tells.
"""

import ipaddress
from collections.abc import Collection

from starlette.types import Scope


class HostNames:
    """Judges the `Host` header of requests.

    Args:
        listens_on: the gateway's address. On loopback alone, loopback's names are what is right;
            elsewhere any name is, unless some are allowed.
        allowed: names beside those of loopback, without a port; of a reverse proxy for example.
    """

    def __init__(self, listens_on: str, allowed: Collection[str]) -> None:
        self._allowed = {name.lower() for name in allowed}
        self._judges = bool(allowed) or _is_loopback(listens_on)

    def allow(self, scope: Scope) -> bool:
        """Whether the request names an allowed host, or none at all, as no browser does."""
        if not self._judges:
            return True
        for name, value in scope["headers"]:
            if name == b"host":
                host = _without_port(value.decode("latin-1"))
                return not host or host in self._allowed or _is_loopback(host)
        return True


def _without_port(value: str) -> str:
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower().rstrip(".")


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
