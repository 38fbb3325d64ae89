"""A real HTTP server whose answers a test decides, malformed answers included."""

import asyncio
import ssl
from dataclasses import dataclass, field

from tests.support.listener import Listener


@dataclass(frozen=True, slots=True)
class Received:
    """One request; names of headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """An answer.

    Attributes:
        raw: bytes to send instead of a response made from the other fields.
        held: the answer is sent when this event is set; the request counts as received before.
        stalls_after: number of bytes of the body after which the receiver sends nothing more.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    raw: bytes | None = None
    held: asyncio.Event | None = None
    stalls_after: int | None = None

    def encode(self) -> bytes:
        if self.raw is not None:
            return self.raw
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} Because", *(f"{k}: {v}" for k, v in headers.items())]
        body = self.body[: self.stalls_after]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Receiver(Listener):
    """Listens on a free loopback port. Gives `answers` in turn, and repeats the last one."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.answers = list(answers) or [Answer()]
        self.requests: list[Received] = []
        self._came = asyncio.Condition()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}/hook?a=b"

    def answer_to(self, request: Received) -> Answer:
        """The answer to a request."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def received(self, count: int) -> list[Received]:
        """The requests, as soon as there are `count`."""
        async with asyncio.timeout(60), self._came:
            await self._came.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _read(reader)
                self.requests.append(request)
                answer = self.answer_to(request)
                async with self._came:
                    self._came.notify_all()
                if answer.held is not None:
                    await answer.held.wait()
                writer.write(answer.encode())
                await writer.drain()
                if answer.stalls_after is not None:
                    await asyncio.Event().wait()
                if answer.raw is not None:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.strip().split("\r\n")
    method, path, _ = request_line.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)
