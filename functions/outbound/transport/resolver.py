"""Resolves host names without threads, so that slow names hold nothing that others need.

The event loop's own `getaddrinfo` runs in a pool of a few threads, and each call holds its thread
for as long as the name servers are silent: twelve such names delayed every other name by 15 s.
"""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import aiodns

from functions.outbound.transport.faults import NameNotResolved, take_failure

CACHED_S = 15.0
_MAX_CACHED = 10_000
_QUERY_TIMEOUT_S = 1.0
_QUERY_TRIES = 4


@dataclass(frozen=True, slots=True)
class _Cached:
    addresses: Sequence[str]
    until_s: float


class Resolver:
    """Addresses by host name; one lookup for all callers that want the same name.

    Args:
        nameservers: `ip` or `ip:port`; none for those of the system.
    """

    def __init__(self, nameservers: Sequence[str] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        self._dns = aiodns.DNSResolver(
            nameservers=list(nameservers) or None, timeout=_QUERY_TIMEOUT_S, tries=_QUERY_TRIES
        )
        self._cache: dict[str, _Cached] = {}
        self._lookups: dict[str, asyncio.Task[Sequence[str]]] = {}

    async def resolve(self, host: str) -> Sequence[str]:
        """The addresses of a host, as literals, in the order in which they shall be tried.

        Every spelling of an address (`2130706433`, `127.1`) is turned to the usual one at once.

        Raises:
            NameNotResolved: there is none, or the name servers did not answer.
        """
        if literal := _literal(host):
            return (literal,)
        cached = self._cache.get(host)
        if cached is not None and cached.until_s > self._loop.time():
            return cached.addresses
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = self._loop.create_task(self._look_up(host))
            lookup.add_done_callback(take_failure)
        # Shielded: the time limit of one caller must not end the lookup of another.
        return await asyncio.shield(lookup)

    async def close(self) -> None:
        """End the lookups and close the sockets."""
        lookups = list(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)
        await self._dns.close()

    async def _look_up(self, host: str) -> Sequence[str]:
        try:
            found = await self._dns.getaddrinfo(host, type=socket.SOCK_STREAM)
        except (aiodns.error.DNSError, UnicodeError, ValueError):
            raise NameNotResolved from None
        finally:
            del self._lookups[host]
        texts = [node.addr[0] for node in found.nodes]
        addresses = tuple(
            dict.fromkeys(text.decode() if isinstance(text, bytes) else text for text in texts)
        )
        if not addresses:
            raise NameNotResolved
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[host] = _Cached(addresses, self._loop.time() + CACHED_S)
        return addresses


def _literal(host: str) -> str:
    """The address that a host spells out; empty when the host is a name. Asks nobody."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return ""
    return str(found[0][4][0])


__all__ = ["CACHED_S", "Resolver"]
