"""Listings of a server's connections, while connections end."""

from collections.abc import AsyncIterator

import pytest

from functions.presence.servers import ListedPart, ListingFailed, find_servers, list_connections
from runtime.broker.system_account import SystemAccount
from tests.support.many_sessions import SERVER_ID, ManySessions, many_sessions
from tests.support.servers import NatsServer


@pytest.fixture
async def server(nats_server: NatsServer) -> AsyncIterator[ManySessions]:
    async with many_sessions(nats_server.system_url) as joined:
        yield joined


@pytest.fixture
async def system(nats_server: NatsServer) -> AsyncIterator[SystemAccount]:
    account = await SystemAccount.connect(nats_server.system_url)
    yield account
    await account.close()


async def parts_of(system: SystemAccount, page: int = 10, overlap: int = 3) -> list[ListedPart]:
    listing = list_connections(system, SERVER_ID, "$G", page=page, overlap=overlap)
    return [part async for part in listing]


def check_complete(parts: list[ListedPart], always_open: set[int]) -> None:
    """The parts have no gap, and hold every connection that was open all the time."""
    above = 0
    for part in parts:
        assert part.above <= above
        above = part.up_to or 10**9
    assert above == 10**9
    seen = set()
    for part in parts:
        ids = {session.connection_id for session in part.listing.sessions}
        assert all(
            number in ids for number in always_open if part.above < number <= (part.up_to or 10**9)
        )
        seen |= ids
    assert always_open <= seen


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 17, 18, 100])
async def test_all_connections_are_listed(
    server: ManySessions, system: SystemAccount, count: int
) -> None:
    server.open_silently(range(count))
    check_complete(await parts_of(system), set(server.connection_ids))


@pytest.mark.parametrize("ending", [1, 3, 4, 7, 10])
async def test_connections_that_end_meanwhile_hide_no_other(
    server: ManySessions, system: SystemAccount, ending: int
) -> None:
    server.open_silently(range(100))
    left = iter(range(100))
    asked = 0

    def end_some() -> None:
        nonlocal asked
        asked += 1
        if asked <= 4:
            server.end_silently([next(left) for _ in range(ending)])

    server.on_listed = end_some
    parts = await parts_of(system)
    check_complete(parts, set(server.connection_ids))


async def test_a_listing_fails_when_connections_end_faster_than_it_reads(
    server: ManySessions, system: SystemAccount
) -> None:
    server.open_silently(range(1000))
    left = iter(range(1000))
    asked = 0

    def end_many() -> None:
        nonlocal asked
        asked += 1
        # So far on that no smaller offset of a few pages is the beginning.
        if asked > 20:
            server.end_silently([next(left) for _ in range(30)])

    server.on_listed = end_many
    with pytest.raises(ListingFailed):
        await parts_of(system)


async def test_a_server_that_is_gone_does_not_answer(system: SystemAccount) -> None:
    assert SERVER_ID not in await find_servers(system)
    with pytest.raises(ListingFailed):
        await parts_of(system)
