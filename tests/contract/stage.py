"""The stage: a socket to which functions report each call, and which answers what to do."""

import asyncio
import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.host import DEADLINE_S


@dataclass(frozen=True, slots=True)
class Origin:
    """The position of a message in its original stream."""

    stream: str
    sequence: int
    subject: str
    stored_at_ns: int
    data: bytes
    headers: dict[str, str]


class Call:
    """One call of a function, until it is answered or closed."""

    def __init__(
        self, told: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.arrived_s = asyncio.get_running_loop().time()
        self.attempt: int = told.pop("attempt")
        self.pid: int = told.pop("pid")
        self.message = Origin(**{**told, "data": base64.b64decode(told["data"])})
        self._reader = reader
        self._writer = writer

    def answer(self, act: str, **details: Any) -> None:
        self._writer.write(json.dumps({"act": act, **details}).encode() + b"\n")

    async def wait_until_left(self) -> None:
        """Return when the function has closed its connection, by its end or its cancellation."""
        async with asyncio.timeout(DEADLINE_S):
            assert await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


class Stage:
    """Receives the calls of one function, from any process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._calls: asyncio.Queue[Call] = asyncio.Queue()
        self._taken: list[Call] = []
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._take, self.path)

    async def next_call(self, timeout_s: float = DEADLINE_S) -> Call:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._calls.get()
        except TimeoutError:
            raise AssertionError(f"no call came within {timeout_s:g} s") from None

    @property
    def waiting(self) -> int:
        """The number of calls that `next_call` has not returned yet."""
        return self._calls.qsize()

    def close(self) -> None:
        """Close every call, including calls in abandoned threads."""
        for call in self._taken:
            call.close()
        if self._server is not None:
            self._server.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told = await reader.readline()
        if not told:
            writer.close()  # The function was killed before it reported its call.
            return
        call = Call(json.loads(told), reader, writer)
        self._taken.append(call)
        self._calls.put_nowait(call)
