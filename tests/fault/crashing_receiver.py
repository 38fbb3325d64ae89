"""A receiver of webhooks that crashes: connections break, its port refuses, and it comes back."""

import asyncio
from collections import defaultdict

import orjson


class CrashingReceiver:
    """Accepts every request while it runs; paths are endpoints.

    Attributes:
        port: the port, the same after a crash.
        accepted: the answered job ids of each path, in order, repeats included.
        numbers: the `payload.n` of each path and device, of jobs that were not answered before.
    """

    def __init__(self) -> None:
        self.port = 0
        self.accepted: dict[str, list[str]] = defaultdict(list)
        self.numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.answers = 0
        self._known: set[str] = set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._grew = asyncio.Condition()

    async def start(self) -> None:
        """Listen, after a crash on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def crash(self) -> None:
        """Break all connections, and listen no more."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def reach(self, answers: int) -> None:
        """Return when there were so many answers."""
        async with self._grew:
            await self._grew.wait_for(lambda: self.answers >= answers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request_line, *lines = head.decode("latin-1").strip().split("\r\n")
                headers = {
                    name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
                }
                body = await reader.readexactly(int(headers["content-length"]))
                self._accept(request_line.split(" ")[1], headers["webhook-id"], body)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                async with self._grew:
                    self._grew.notify_all()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    def _accept(self, path: str, job_id: str, body: bytes) -> None:
        self.answers += 1
        self.accepted[path].append(job_id)
        if job_id in self._known:
            return
        self._known.add(job_id)
        data = orjson.loads(body)["data"]
        self.numbers[(path, data["device_id"])].append(data["payload"]["n"])


__all__ = ["CrashingReceiver"]
