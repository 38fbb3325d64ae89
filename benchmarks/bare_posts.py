"""The peer of webhook delivery: a loop that only posts, with aiohttp, so many at a time.

Run as `python -m benchmarks.bare_posts URL REQUESTS IN_FLIGHT BODY_BYTES`. Prints requests a second
and microseconds of processor time for each.
"""

import asyncio
import sys
import time

import aiohttp
import uvloop

_UNCOUNTED_SHARE = 10


async def main(url: str, requests: int, in_flight: int, body_bytes: int) -> None:
    """Post, and print the pace without the first requests."""
    body = b"x" * body_bytes
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector) as session:
        await _post(session, url, body, requests // _UNCOUNTED_SHARE, in_flight)
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await _post(session, url, body, requests, in_flight)
        took_s, used_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    print(requests / took_s, used_s / requests * 1e6)


async def _post(
    session: aiohttp.ClientSession, url: str, body: bytes, requests: int, in_flight: int
) -> None:
    left = iter(range(requests))

    async def post_some() -> None:
        for _ in left:
            async with session.post(url, data=body) as answer:
                await answer.read()
                answer.raise_for_status()

    await asyncio.gather(*(post_some() for _ in range(in_flight)))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *(int(argument) for argument in sys.argv[2:])))
