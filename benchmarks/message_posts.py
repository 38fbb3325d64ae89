"""The client of both sides of the messages benchmark: posts text messages, so many at a time.

Run as `python -m benchmarks.message_posts URL REQUESTS IN_FLIGHT`, with the key in MESSAGE_KEY.
Prints the answers of 202 a second, without the first ones.
"""

import asyncio
import os
import sys
import time

import aiohttp
import uvloop

_BODY = {"to": "+436641234567", "body": "Your order 4711 is on its way and arrives tomorrow"}
_UNCOUNTED_SHARE = 10


async def main(url: str, requests: int, in_flight: int) -> None:
    """Post, and print the rate."""
    headers = {"Authorization": f"Bearer {os.environ['MESSAGE_KEY']}"}
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await _post(session, url, requests // _UNCOUNTED_SHARE, in_flight)
        began_s = time.perf_counter()
        await _post(session, url, requests, in_flight)
        print(requests / (time.perf_counter() - began_s))


async def _post(session: aiohttp.ClientSession, url: str, requests: int, in_flight: int) -> None:
    left = iter(range(requests))

    async def post_some() -> None:
        for _ in left:
            async with session.post(url, json=_BODY) as answer:
                await answer.read()
                answer.raise_for_status()

    await asyncio.gather(*(post_some() for _ in range(in_flight)))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *(int(argument) for argument in sys.argv[2:])))
