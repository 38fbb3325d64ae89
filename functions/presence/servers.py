"""Asks nats-servers which connections of devices are open."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import orjson

from functions.presence.sessions import Listing, read_listing, read_server
from runtime import NoAnswer, RequestFailed, SystemPort

# A server prepares an answer about all its connections, however small the page is. A page is some
# 4 MB; NATS sends what a server itself has to say without a limit.
_PAGE = 10_000
# The connections that end while a server is asked move the later ones to smaller offsets.
_OVERLAP = 1_000
_WAIT_S = 0.5
_LISTING_S = 10.0
_TRIES = 5


class ListedPart(NamedTuple):
    """All open connections of a server with ids of a range.

    Attributes:
        above: the range begins after this id.
        up_to: the last id of the range; None: it has no end.
        listing: the server's answer.
    """

    above: int
    up_to: int | None
    listing: Listing


class ListingFailed(Exception):  # noqa: N818 - names what happened
    """A server does not list its connections."""


async def find_servers(system: SystemPort) -> dict[str, tuple[int, int]]:
    """The versions (major, minor) of the servers that answer within half a second, by their ids."""
    replies = await system.request_many("$SYS.REQ.SERVER.PING", wait_s=_WAIT_S)
    return dict(found for reply in replies if (found := read_server(reply.data)))


async def list_connections(
    system: SystemPort, server_id: str, account: str, *, page: int = _PAGE, overlap: int = _OVERLAP
) -> AsyncIterator[ListedPart]:
    """A server's open connections, in parts that together have no gap.

    Pages are asked for by offset, and connections that end between two questions move the later
    ones to smaller offsets. So a page has to overlap with the one before, or is asked for again.

    Raises:
        ListingFailed: the server does not answer, or so many connections end that its pages never
            overlap.
    """
    above = offset = tries = 0
    while True:
        listing = await _ask(system, server_id, account, offset, page)
        if offset and (not listing.count or listing.first > above):
            tries += 1
            if tries == _TRIES:
                raise ListingFailed("connections end faster than the server lists them")
            offset = max(0, offset - page)
            continue
        is_last = listing.count < page
        yield ListedPart(above, None if is_last else listing.last, listing)
        if is_last:
            return
        tries, above = 0, max(above, listing.last)
        offset += page - overlap
        await asyncio.sleep(0)


async def _ask(
    system: SystemPort, server_id: str, account: str, offset: int, limit: int
) -> Listing:
    options = {"auth": True, "offset": offset, "limit": limit}
    subject = f"$SYS.REQ.SERVER.{server_id}.CONNZ"
    try:
        reply = await system.request(subject, orjson.dumps(options), timeout_s=_LISTING_S)
    except (NoAnswer, RequestFailed) as failure:
        raise ListingFailed("the server does not answer") from failure
    listing = read_listing(reply.data, account)
    if listing is None or listing.server_id != server_id:
        raise ListingFailed("the answer cannot be read")
    return listing


__all__ = ["ListedPart", "ListingFailed", "find_servers", "list_connections"]
