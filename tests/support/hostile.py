"""A receiver that misbehaves on the level of bytes, as a test tells it."""

import asyncio
from collections.abc import Awaitable, Callable

from tests.support.listener import Listener

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class HostileReceiver(Listener):
    """Reads one request at a time, and then does what the behaviour does.

    Attributes:
        requests: the number of requests read.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self._behaviour = behaviour
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, _, after = head.lower().partition(b"content-length: ")
                await reader.readexactly(int(after.split(b"\r\n")[0]))
                self.requests += 1
                await self._behaviour(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


class HostileListener(Listener):
    """Does what the behaviour does with each connection, reads nothing by itself, and closes it."""

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__()
        self._behaviour = behaviour

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._behaviour(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
