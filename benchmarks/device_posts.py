"""The client of both sides of the gateway benchmark: posts readings on kept connections.

Run as `python -m benchmarks.device_posts PORT REQUESTS CONNECTIONS DEVICES`, with the token of the
devices in DEVICE_TOKEN. Each connection has one request under way. The client does little for a
request, so that the server limits the rate. Prints the answers of 202 a second, without the first.
"""

import asyncio
import os
import sys
import time

import uvloop

_BODY = (
    b'{"site_id":"s1","metrics":'
    b'{"temperature":21.5,"humidity":48.2,"pressure":1013.1,"battery":3.7}}'
)
_HEAD = (
    "POST /ingest/v1/tenant/bench/device/device-{}/telemetry HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    "Content-Type: application/json\r\nX-Provision-Token: {}\r\nContent-Length: {}\r\n\r\n"
)
_ACCEPTED = b"HTTP/1.1 202 "
_UNCOUNTED_SHARE = 10


class _Client(asyncio.Protocol):
    """Posts for one device after the other until no request is left."""

    def __init__(self, requests: list[bytes], left: list[int], ended: asyncio.Event) -> None:
        self._requests = requests
        self._left = left
        self._ended = ended
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._post()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        if not head.startswith(_ACCEPTED):
            raise SystemExit(f"refused: {self._buffer!r}")
        self._buffer = b""
        self._left[1] -= 1
        if not self._left[1]:
            self._ended.set()
        self._post()

    def _post(self) -> None:
        if self._left[0]:
            self._left[0] -= 1
            self._transport.write(self._requests[self._left[0] % len(self._requests)])


async def _post(port: int, requests: list[bytes], count: int, connections: int) -> None:
    left, ended = [count, count], asyncio.Event()
    loop = asyncio.get_running_loop()
    transports = [
        (await loop.create_connection(lambda: _Client(requests, left, ended), "127.0.0.1", port))[0]
        for _ in range(connections)
    ]
    await ended.wait()
    for transport in transports:
        transport.close()


async def main(port: int, count: int, connections: int, devices: int) -> None:
    """Post, and print the rate."""
    token = os.environ["DEVICE_TOKEN"]
    heads = (_HEAD.format(n, token, len(_BODY)) for n in range(devices))
    requests = [head.encode() + _BODY for head in heads]
    await _post(port, requests, count // _UNCOUNTED_SHARE, connections)
    began_s = time.perf_counter()
    await _post(port, requests, count, connections)
    print(count / (time.perf_counter() - began_s))


if __name__ == "__main__":
    uvloop.run(main(*(int(argument) for argument in sys.argv[1:])))
