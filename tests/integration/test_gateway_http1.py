"""The gateway's HTTP server at the socket: order, ends, and bounds for what a client decides."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from functions.http_gateway.connection_limits import ConnectionLimits
from functions.http_gateway.http1 import Server, ServerLimits
from functions.http_gateway.listener import ProblemRefusals, open_listener

GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST /%d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"

# One answer fits, and two do not, whatever part of them the kernel takes.
MOST_UNREAD_BYTES = 25_000_000
UNREAD_BYTES = 24_000_000

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass
class Serving:
    """A server, and the paths that were asked, in order."""

    port: int
    server: Server
    asked: list[str] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_asked(self, count: int) -> None:
        """Wait until so many requests have reached the application."""
        async with asyncio.timeout(20):
            while len(self.asked) < count:
                self.news.clear()
                await self.news.wait()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, *parts: bytes, ends: bool = False) -> bytes:
        """Send the parts, each when the one before was taken; all bytes until the end."""
        reader, writer = await self.open()
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            if ends:
                writer.write_eof()
            async with asyncio.timeout(20):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    app: ASGIApp, *, most: int = 100, read_timeout_s: float = 20, write_timeout_s: float = 20
) -> AsyncIterator[Serving]:
    listener = open_listener("127.0.0.1", 0)
    found: list[Serving] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        found[0].asked.append(scope["path"])
        found[0].news.set()
        await app(scope, receive, send)

    server = Server(
        note,
        ServerLimits(32_768, read_timeout_s, write_timeout_s, MOST_UNREAD_BYTES, drain_timeout_s=5),
        ConnectionLimits(most, most, lambda address: address),
        ProblemRefusals(),
        structlog.stdlib.get_logger(),
    )
    found.append(Serving(listener.getsockname()[1], server))
    served = asyncio.create_task(server.serve(listener))
    try:
        yield found[0]
    finally:
        server.stop()
        await asyncio.wait_for(served, 20)


async def answer(send: Send, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the path and the body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    await answer(send, scope["path"].encode() + b":" + body + b";")


def bodies(answers: bytes) -> list[bytes]:
    return [part.rpartition(b"\r\n\r\n")[2] for part in answers.split(b";")[:-1]]


async def test_requests_that_come_together_are_answered_one_after_the_other() -> None:
    running: list[str] = []

    async def alone(scope: Scope, receive: Receive, send: Send) -> None:
        assert not running
        running.append(scope["path"])
        await asyncio.sleep(0)
        await echo(scope, receive, send)
        running.clear()

    async with serving(alone) as server:
        asked = b"".join([GET % n + b"\r\n" + POST % n for n in range(300)])
        answers = await server.ask(asked + LAST + GET % 7)
    expected = [b"/%d:%b" % (n, body) for n in range(300) for body in (b"", b"abc")]
    assert bodies(answers) == [*expected, b"/last:"]
    assert answers.count(b"HTTP/1.1 200 OK") == 601
    assert server.asked[-1] == "/last"


async def test_requests_are_read_ahead_only_so_far() -> None:
    release = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await echo(scope, receive, send)

    async with serving(wait) as server:
        reader, writer = await server.open()
        # More than the buffers of both sockets hold: the server stops reading.
        request = POST % 1
        total = 20_000_000 // len(request)
        writer.write(request * total)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.2)
        assert server.asked == ["/1"]
        release.set()
        for _ in range(1000):
            await reader.readuntil(b"/1:abc;")
        writer.transport.abort()


async def test_a_malformed_request_is_refused_after_the_answers_before_it() -> None:
    async with serving(echo) as server:
        answers = await server.ask(GET % 1 + POST % 2 + b"nonsense\r\n\r\n" + GET % 3)
        broken_body = await server.ask(GET % 4 + CHUNKED % 5 + b"nonsense\r\n")
    assert bodies(answers) == [b"/1:", b"/2:abc"]
    assert b"HTTP/1.1 400 Bad Request" in answers
    assert bodies(broken_body) == [b"/4:"]
    assert b"HTTP/1.1 400 Bad Request" in broken_body
    assert server.asked == ["/1", "/2", "/4"]


async def test_a_client_that_has_closed_its_side_gets_all_its_answers() -> None:
    async with serving(echo) as server:
        answers = await server.ask(GET % 1 + POST % 2 + b"POST /3 HTTP/1.1\r\nHo", ends=True)
        cut = await server.ask(GET % 4 + (CHUNKED % 5) + b"3\r\nab", ends=True)
        assert await server.ask((CHUNKED % 6) + b"3\r\nab", ends=True) == b""
    assert bodies(answers) == [b"/1:", b"/2:abc"]
    assert bodies(cut) == [b"/4:"]


async def test_the_rest_of_a_refused_body_is_dropped_and_the_next_request_is_answered() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/1":
            await answer(send, b"too large;", status=413)
        else:
            await echo(scope, receive, send)

    large = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n"
    async with serving(refuse) as server:
        answers = await server.ask(large, b"x" * 3_000_000, POST % 2, LAST)
        malformed = await server.ask(CHUNKED % 1, b"nonsense\r\n")
    assert bodies(answers) == [b"too large", b"/2:abc", b"/last:"]
    assert malformed.count(b"HTTP/1.1 ") == 1


async def test_a_client_that_still_sends_reads_the_answer_that_ends_its_connection() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"go away", (b"connection", b"close"), status=429)

    head = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 90000000\r\n\r\n"
    async with serving(refuse) as server:
        reader, writer = await server.open()
        writer.write(head + b"x" * 10_000_000)
        assert (await reader.read()).endswith(b"go away")
        writer.transport.abort()


async def test_the_rest_of_a_refused_body_must_come_in_time() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"no", status=413)

    async with serving(refuse, read_timeout_s=0.2) as server:
        head = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nx"
        assert (await server.ask(head)).endswith(b"no")


async def test_a_client_that_asks_whether_to_send_its_body_is_told() -> None:
    async def judge(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/1":
            await echo(scope, receive, send)
        else:
            await answer(send, b"no;", status=413)

    ask = b"POST /%d HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    async with serving(judge) as server:
        reader, writer = await server.open()
        writer.write(ask % 1)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc" + ask % 2)
        # Nobody can know whether the body follows, so nothing more is read.
        answers = await reader.read()
        writer.close()
    assert bodies(answers) == [b"/1:abc", b"no"]
    assert b"connection: close" in answers


@pytest.mark.parametrize(
    ("request_bytes", "framing", "body"),
    [
        (GET % 1 + LAST, b"transfer-encoding: chunked", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        (b"GET /1 HTTP/1.0\r\n\r\n", b"connection: close", b"abc"),
        (b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"connection: close", b"abc"),
        (b"HEAD /1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"connection: close", b""),
    ],
)
async def test_a_body_without_a_length_is_framed_as_the_client_understands(
    request_bytes: bytes, framing: bytes, body: bytes
) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        for part in (b"ab", b"c"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    async with serving(stream) as server:
        head, _, rest = (await server.ask(request_bytes)).partition(b"\r\n\r\n")
    assert framing in head
    assert rest.startswith(body) if body else not rest


async def test_an_old_client_may_keep_its_connection() -> None:
    request = b"GET /%d HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    async with serving(echo) as server:
        answers = await server.ask(request % 1 + request % 2 + LAST)
    assert bodies(answers) == [b"/1:", b"/2:", b"/last:"]
    assert answers.count(b"connection: keep-alive") == 2


async def test_a_large_body_is_taken_as_fast_as_the_application_takes_it() -> None:
    taken: list[int] = []

    async def take(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            taken.append(len(message["body"]))
            await asyncio.sleep(0)
        await answer(send, b"%d;" % sum(taken))

    head = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5000000\r\n\r\n"
    async with serving(take) as server:
        answers = await server.ask(head + b"x" * 5_000_000 + LAST)
    assert bodies(answers)[0] == b"5000000"
    assert max(taken) < 500_000


async def test_an_application_learns_that_its_client_is_gone() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        assert not (await receive())["more_body"]
        asked.set()
        assert (await receive())["type"] == "http.disconnect"
        await answer(send, b"nobody reads this")
        gone.set()

    async with serving(wait) as server:
        _, writer = await server.open()
        writer.write(POST % 1)
        await asked.wait()
        writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 20)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_an_application_that_fails_ends_its_own_connection_alone(has_begun: bool) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/1":
            await echo(scope, receive, send)
            return
        if has_begun:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        raise RuntimeError("a fault")

    async with serving(fail) as server:
        failed = b""
        with suppress(ConnectionError):
            failed = await server.ask(GET % 1)
        assert b"0\r\n\r\n" not in failed
        assert bodies(await server.ask(GET % 2 + LAST)) == [b"/2:", b"/last:"]


async def test_a_client_that_reads_nothing_does_not_hold_the_application() -> None:
    ended = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        for _ in range(2000):
            part = {"type": "http.response.body", "body": b"x" * 65_536, "more_body": True}
            await send(part)
        ended.set()

    async with serving(flood, write_timeout_s=0.2) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(GET % 1)
            await asyncio.wait_for(ended.wait(), 20)


async def test_a_client_that_does_not_send_its_body_makes_room_for_another() -> None:
    head = POST.partition(b"abc")[0]
    async with serving(echo, most=3) as server:
        slow = [await server.open() for _ in range(3)]
        for number, (_, writer) in enumerate(slow):
            writer.write(head % number)
        await server.until_asked(3)
        assert bodies(await server.ask(LAST)) == [b"/last:"]
        reader, _ = slow[0]
        assert await asyncio.wait_for(reader.read(), 20) == b""
        for number, (reader, writer) in enumerate(slow[1:], 1):
            writer.write(b"abc")
            assert (await asyncio.wait_for(reader.readuntil(b";"), 20)).endswith(
                b"/%d:abc;" % number
            )
        for _, writer in slow:
            writer.close()


async def test_a_client_that_is_refused_and_stays_makes_room_for_another() -> None:
    async with serving(echo, most=1) as server:
        reader, writer = await server.open()
        writer.write(GET % 1 + b"garbage\r\n")
        assert b" 400 " in await asyncio.wait_for(reader.read(), 20)
        assert bodies(await server.ask(LAST)) == [b"/last:"]
        writer.close()


async def test_a_client_that_reads_nothing_makes_room_for_another() -> None:
    unread = asyncio.Event()

    async def send_much(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/last":
            await echo(scope, receive, send)
            return
        await answer(send, b"x" * 4_000_000)
        # What the client does not take stays in the buffers, and the next answer waits for them.
        unread.set()

    async with serving(send_much, most=1) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(GET * 3 % (1, 2, 3))
            await asyncio.wait_for(unread.wait(), 20)
            await server.until_asked(2)
            assert bodies(await server.ask(LAST)) == [b"/last:"]


def read_all(client: socket.socket) -> int:
    """How many bytes come until all of an answer are there, or the connection ends."""
    count = 0
    while count <= UNREAD_BYTES and (data := client.recv(1_000_000)):
        count += len(data)
    return count


async def test_who_reads_nothing_for_the_longest_time_is_cut_off_beyond_the_bound() -> None:
    async def send_much(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, scope["path"].encode() + b"x" * UNREAD_BYTES)

    async with serving(send_much) as server:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as first,
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as second,
        ):
            for number, client in enumerate((first, second)):
                client.sendall(GET % number)
                await server.until_asked(number + 1)
            with suppress(ConnectionResetError):
                assert await asyncio.to_thread(read_all, first) < UNREAD_BYTES
            assert await asyncio.to_thread(read_all, second) > UNREAD_BYTES


async def test_stopping_answers_what_has_begun_and_closes_what_has_not() -> None:
    asked, release = asyncio.Event(), asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await release.wait()
        await echo(scope, receive, send)

    async with serving(wait) as server:
        begun, idle, partial = [await server.open() for _ in range(3)]
        begun[1].write(GET % 1)
        partial[1].write(b"GET /2 HTT")
        await asked.wait()
        server.server.stop()
        assert await idle[0].read() == b""
        assert await partial[0].read() == b""
        release.set()
        assert bodies(await begun[0].read()) == [b"/1:"]
        for _, writer in (begun, idle, partial):
            writer.close()
