"""The receiver of the webhook benchmark: answers each POST with 200 on a connection that is kept.

Run as `python -m benchmarks.receiver PORT`.
"""

import asyncio
import sys
from typing import cast

import uvloop

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_LENGTH = b"content-length: "


class _Receiver(asyncio.Protocol):
    def __init__(self) -> None:
        self._read = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not `isinstance`: uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._read += data
        while self._take_request() and self._transport is not None:
            self._transport.write(_ANSWER)

    def _take_request(self) -> bool:
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end:
            return False
        length = int(head.lower().partition(_LENGTH)[2].split(b"\r\n")[0] or 0)
        if len(body) < length:
            return False
        self._read = body[length:]
        return True


async def main(port: int) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Receiver, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
