"""Receivers that attack the sender: every answer is bounded in time, bytes and processor time."""

import asyncio
import gzip
import itertools
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator

import pytest
import uvloop

from functions.outbound.endpoint import excerpt_of
from functions.outbound.transport.client import HttpClient
from functions.outbound.transport.connection import BODY_S, MAX_BODY_BYTES, Answer
from functions.outbound.transport.connector import Origin
from functions.outbound.transport.faults import (
    AnswerTimeout,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    NameNotResolved,
    NotHttp,
)
from runtime import AddressPolicy, parse_networks
from tests.support.hostile import HostileListener, HostileReceiver
from tests.support.name_server import NameServer

TIMEOUT_S = 1.5
EXCERPT_BYTES = 1000
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = b"POST /hook HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    async with NameServer() as server:
        yield server


@pytest.fixture
async def client(names: NameServer) -> AsyncIterator[HttpClient]:
    policy = AddressPolicy(parse_networks("127.0.0.0/8"))
    opened = HttpClient(
        policy,
        timeout_s=TIMEOUT_S,
        excerpt_bytes=EXCERPT_BYTES,
        nameservers=[names.address],
    )
    yield opened
    await opened.close()


async def send(client: HttpClient, receiver: HostileReceiver) -> Answer:
    return await client.send(Origin("127.0.0.1", receiver.port), REQUEST)


def writes(*parts: bytes) -> HostileReceiver:
    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()

    return HostileReceiver(behave)


def repeats(first: bytes, part: bytes, *, every_s: float = 0.0) -> HostileReceiver:
    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(every_s)

    return HostileReceiver(behave)


@pytest.mark.parametrize("interim", [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 100 C\r\n\r\n"])
async def test_interim_answers_without_end_cost_no_more_than_a_few(
    client: HttpClient, interim: bytes
) -> None:
    async with repeats(b"", interim * 1000) as receiver:
        began_s = time.process_time()
        with pytest.raises(NotHttp):
            await send(client, receiver)
        assert time.process_time() - began_s < TIMEOUT_S / 2


async def test_interim_answers_that_come_slowly_end_with_the_time_limit(
    client: HttpClient,
) -> None:
    async with repeats(b"", b"HTTP/1.1 102 Processing\r\n\r\n", every_s=0.2) as receiver:
        with pytest.raises(AnswerTimeout):
            await send(client, receiver)


async def test_a_few_interim_answers_are_passed_over(client: HttpClient) -> None:
    async with writes(b"HTTP/1.1 103 Early\r\nretry-after: 7\r\n\r\n" * 3 + OK) as receiver:
        answer = await send(client, receiver)
        await send(client, receiver)
    assert (answer.status, answer.headers, answer.body) == (200, {}, b"ok")
    assert receiver.connections == 1


async def test_a_head_that_comes_byte_by_byte_ends_with_the_time_limit(client: HttpClient) -> None:
    async with repeats(b"HTTP/1.1 200 OK\r\nx: ", b"a", every_s=0.05) as receiver:
        with pytest.raises(AnswerTimeout):
            await send(client, receiver)


@pytest.mark.parametrize(
    ("first", "part"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"a: " + b"b" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\na: ", b"b" * 1000),
        (b"HTTP/1.1 200 ", b"b" * 1000),
    ],
)
async def test_a_head_without_end_is_cut_off(client: HttpClient, first: bytes, part: bytes) -> None:
    async with repeats(first, part) as receiver:
        with pytest.raises(NotHttp):
            await send(client, receiver)


async def test_a_body_that_comes_byte_by_byte_is_read_for_two_seconds(client: HttpClient) -> None:
    head = b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\n"
    async with repeats(head, b"a", every_s=0.1) as receiver:
        began_s = time.monotonic()
        answer = await send(client, receiver)
    assert (answer.status, set(answer.body)) == (500, {ord("a")})
    assert BODY_S * 0.9 < time.monotonic() - began_s < BODY_S + 30


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 10000000\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"],
)
async def test_a_body_of_ten_megabytes_is_not_read_to_its_end(
    client: HttpClient, head: bytes
) -> None:
    sent = 0

    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n" + head)
        for _ in range(10_000):
            part = b"x" * 1000
            writer.write(b"3e8\r\n%b\r\n" % part if b"chunked" in head else part)
            await writer.drain()
            sent += 1000

    async with HostileReceiver(behave) as receiver:
        answer = await send(client, receiver)
        assert (answer.status, len(answer.body)) == (200, EXCERPT_BYTES)
        assert (await send(client, receiver)).status == 200
    assert receiver.connections == 2
    assert sent < 2 * 10_000_000


@pytest.mark.parametrize(
    ("begin", "part"),
    [
        (b"2;", b"extension=" * 1000),
        (b"0\r\n", b"trailer: value\r\n" * 1000),
        (b"", b"0" * 1000),
    ],
)
async def test_what_surrounds_the_chunks_of_a_body_is_bounded_as_the_body_is(
    client: HttpClient, begin: bytes, part: bytes
) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with repeats(head + begin, part) as receiver:
        began_s = time.monotonic()
        answer = await send(client, receiver)
        assert time.monotonic() - began_s < BODY_S
    assert (answer.status, answer.body) == (200, b"")


async def test_a_redirect_to_itself_is_one_answer(client: HttpClient) -> None:
    async with writes(b"HTTP/1.1 307 R\r\nLocation: /hook\r\nContent-Length: 0\r\n\r\n") as r:
        assert (await send(client, r)).status == 307
    assert r.requests == 1


async def test_an_answer_before_the_request_is_read_counts(client: HttpClient) -> None:
    answered = asyncio.Event()

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
        await answered.wait()

    async with HostileListener(refuse) as receiver:
        origin = Origin("127.0.0.1", receiver.port)
        answer = await client.send(origin, REQUEST + b"x" * 10_000_000)
        answered.set()
    assert (answer.status, answer.body) == (413, b"no")


async def test_a_tls_handshake_without_end_ends_with_the_time_limit(client: HttpClient) -> None:
    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with HostileListener(hang) as receiver:
        began_s = time.monotonic()
        origin = Origin("127.0.0.1", receiver.port, ssl.create_default_context())
        with pytest.raises(ConnectTimeout):
            await client.send(origin, REQUEST)
        assert time.monotonic() - began_s < TIMEOUT_S + 30


async def test_a_connection_that_is_reset_at_once_is_a_lost_one(client: HttpClient) -> None:
    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        linger = struct.pack("ii", 1, 0)  # Closing sends a reset.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with HostileListener(reset) as receiver:
        with pytest.raises(ConnectionLost):
            await client.send(Origin("127.0.0.1", receiver.port), REQUEST)


async def test_a_long_answer_within_the_bound_does_not_cost_the_connection(
    client: HttpClient,
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES - 1)
    async with writes(head, b"x" * (MAX_BODY_BYTES - 1)) as receiver:
        for _ in range(3):
            assert len((await send(client, receiver)).body) == EXCERPT_BYTES
    assert receiver.connections == 1


async def test_a_gzip_bomb_is_not_decompressed(client: HttpClient) -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with writes(head, bomb) as receiver:
        answer = await send(client, receiver)
    assert len(answer.body) <= EXCERPT_BYTES
    assert excerpt_of(answer) == "(body not shown, its content-encoding is gzip)"


@pytest.mark.parametrize(
    "surplus",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake", b"HTTP/1.1 2", b"garbage", b"\0"],
)
async def test_bytes_after_an_answer_never_become_the_next_requests_answer(
    client: HttpClient, surplus: bytes
) -> None:
    async with writes(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno" + surplus) as receiver:
        for _ in range(3):
            answer = await send(client, receiver)
            assert (answer.status, answer.body) == (500, b"no")
    assert receiver.connections == 3


async def test_bytes_that_come_while_a_connection_is_idle_close_it(client: HttpClient) -> None:
    later = asyncio.Event()
    turns = itertools.count()

    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(turns):
            writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\nreal")
            return
        writer.write(OK)
        await later.wait()
        writer.write(OK)
        await writer.drain()
        sent.set()

    sent = asyncio.Event()
    async with HostileReceiver(behave) as receiver:
        await send(client, receiver)
        later.set()
        await sent.wait()
        assert (await send(client, receiver)).body == b"real"
    assert receiver.connections == 2


async def test_a_body_that_both_a_length_and_chunks_announce_is_not_an_answer(
    client: HttpClient,
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with writes(head + b"2\r\nok\r\n0\r\n\r\n") as receiver:
        with pytest.raises(NotHttp):
            await send(client, receiver)


async def test_an_upgrade_that_nobody_asked_for_is_an_answer_that_ends_the_connection(
    client: HttpClient,
) -> None:
    async with writes(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n") as r:
        assert (await send(client, r)).status == 101
        assert (await send(client, r)).status == 101
    assert r.connections == 2


async def test_a_half_closed_connection_is_a_lost_one(client: HttpClient) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await reader.read()

    async with HostileReceiver(behave) as receiver:
        with pytest.raises(ConnectionLost):
            await send(client, receiver)


async def test_a_connection_that_the_receiver_closed_while_idle_costs_no_attempt(
    client: HttpClient,
) -> None:
    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with HostileReceiver(behave) as receiver:
        for _ in range(20):
            assert (await send(client, receiver)).status == 200
    assert receiver.requests == receiver.connections == 20


async def test_a_receiver_that_never_reads_ends_with_the_time_limit(client: HttpClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # The system accepts connections to it.
        origin = Origin("127.0.0.1", server.getsockname()[1])
        with pytest.raises(AnswerTimeout):
            await client.send(origin, REQUEST + b"x" * 10_000_000)


async def test_a_name_that_never_resolves_delays_no_other_name(
    client: HttpClient, names: NameServer
) -> None:
    silent = [f"silent{number}.example" for number in range(60)]
    names.silent.update(silent)
    names.answers["live.example"] = [["127.0.0.1"]]
    async with writes(OK) as receiver:
        slow = [asyncio.create_task(client.send(Origin(name, 80), REQUEST)) for name in silent]
        await asyncio.sleep(0)
        began_s = time.monotonic()
        for host in ("127.0.0.1", "live.example"):
            assert (await client.send(Origin(host, receiver.port), REQUEST)).status == 200
        assert time.monotonic() - began_s < TIMEOUT_S
        faults = await asyncio.gather(*slow, return_exceptions=True)
    assert {type(fault) for fault in faults} == {ConnectTimeout}


async def test_a_name_without_address_is_not_resolved(client: HttpClient) -> None:
    for host in ("nowhere.example", "a" * 64 + ".example", "..", "-"):
        with pytest.raises(NameNotResolved):
            await client.send(Origin(host, 80), REQUEST)


async def test_a_port_where_nothing_listens_is_a_failure_to_connect(client: HttpClient) -> None:
    async with writes(OK) as receiver:
        port = receiver.port
    with pytest.raises(ConnectFailed):
        await client.send(Origin("127.0.0.1", port), REQUEST)


async def test_a_cancelled_request_leaves_no_connection_that_could_mix_up_answers(
    client: HttpClient,
) -> None:
    started = asyncio.Event()
    turns = itertools.count()

    async def behave(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not next(turns):
            started.set()
            await asyncio.sleep(0.2)
        writer.write(OK)

    async with HostileReceiver(behave) as receiver:
        request = asyncio.create_task(send(client, receiver))
        await started.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert (await send(client, receiver)).status == 200
    assert receiver.connections == 2


def test_the_loop_that_hosts_run_on_behaves_alike() -> None:
    async def scenario() -> None:
        policy = AddressPolicy(parse_networks("127.0.0.0/8"))
        client = HttpClient(policy, timeout_s=TIMEOUT_S, excerpt_bytes=EXCERPT_BYTES)
        async with writes(OK) as kept, writes(OK + b"HTTP/1.1 200") as surplus, writes() as silent:
            for _ in range(3):
                assert (await send(client, kept)).body == b"ok"
                assert (await send(client, surplus)).body == b"ok"
            with pytest.raises(AnswerTimeout):
                await send(client, silent)
        assert (kept.connections, surplus.connections) == (1, 3)
        with pytest.raises(ConnectFailed):
            await send(client, kept)
        await client.close()

    uvloop.run(scenario())
